/**
 * Changes that no test can notice, and why. `file` is the end of its path, `line` a part of the line of source where the
 * change begins, `to` a part of what it becomes; without `to` any change there.
 */
export const explained = [
	{ file: 'core/connection.ts', line: 'let isPausing = false;', why: 'set again before anybody can read it' },
	{ file: 'core/connection.ts', line: 'if (now() < wakeAt) expect();', to: '<=', why: 'the one millisecond between proves neither' },
	{ file: 'polling.ts', line: 'if (isLost) changed();', to: 'true', why: 'tells of no change: spares tabs a message' },
	{ file: 'polling.ts', line: '> TICK_MS + SLEEP_MS', to: '>=', why: 'one millisecond more or less of a sleep' },
	{ file: 'polling.ts', line: '>= healthyMs', to: '> healthyMs', why: 'one millisecond more or less of a healthy while' },
	{ file: 'core/cursor.ts', line: '.exec(id) ?? [];', to: '["', why: 'only the second and third of it are read' },
	{ file: 'core/parser.ts', line: '.exec(line) ?? [];', to: '["', why: 'only the second and third of it are read' },
	{ file: 'query/coalesce.ts', line: 'if (key.turn > now)', to: '>=', why: 'a turn that has just come is looked at again at once' },
	{ file: 'query/coalesce.ts', line: '} else {', to: '{}', why: 'only memory: a turn that is over says nothing' },
	{ file: 'query/race.ts', line: 'fetches.get(query) === promise) return;', to: 'false', why: 'only speed: the second to settle finds nothing' },
	{ file: 'query/bind.ts', line: 'if (bindings++) return;', to: 'false', why: 'the same listener again, and nothing waits' },
	{ file: 'query/sweep.ts', line: '>= endsAt) return;', to: '> endsAt', why: 'one millisecond more or less of a slice' },
	{ file: 'query/sweep.ts', line: "refetchType: 'none'", to: '""', why: 'of the queries that it would fetch there is none' },
	{ file: 'query/targets.ts', line: 'compared: [] });', to: '["', why: 'a text among the keys matches none' },
	{ file: 'query/targets.ts', line: 'Number.isNaN(part);', to: 'true', why: 'only speed: all are compared' },
	{ file: 'query/targets.ts', line: 'if (isCompared(part)) {', to: 'true', why: 'only speed: all are compared' },
	{ file: 'query/targets.ts', line: 'target.length > key.length', why: 'objects with such a length differ in it anyway' },
];
