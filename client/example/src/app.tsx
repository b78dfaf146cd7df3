import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { type FormEvent, type ReactNode, useEffect, useId, useReducer, useRef, useState, useSyncExternalStore } from 'react';
import type { Mode, SSEClient, Status } from 'stalecast-client';
import { useSSE, useSSEClient, useSSEStatus } from 'stalecast-client/react';
import { changeItem, createItem, fetchCount, fetchIds, fetchItem, type Item, Untold } from './items.js';

const STATUS_TEXTS: Record<Status, [label: string, meaning: string]> = {
	connecting: ['Connecting', 'No stream at the moment. The next attempt comes by itself.'],
	live: ['Live', 'This window has the stream, and passes every event on to the other windows.'],
	follower: ['Follower', 'Another window has the stream. This one hears of everything from it.'],
	polling: ['Polling', 'Asks every two seconds for what it missed. Nothing is lost; it is only later.'],
	offline: ['Offline', 'The browser says that there is no network.'],
	unauthorized: ['Unauthorized', 'The server wants other credentials.'],
	closed: ['Closed', 'Cut by hand, or refused. “Reconnect” goes on where this window stopped.'],
};
const MODES: [Mode, string][] = [
	['auto', 'Auto'],
	['stream', 'Stream'],
	['poll', 'Poll'],
];
const LOG_LIMIT_ROWS = 40;
const TEXT_LIMIT_CHARS = 280;

export function App() {
	return (
		<>
			<Header />
			<main>
				<Board />
				<aside aria-label="What Stalecast does">
					<Connection />
					<Log />
					<TryIt />
				</aside>
			</main>
		</>
	);
}

function Header() {
	return (
		<header>
			<svg viewBox="0 0 16 16" aria-hidden="true">
				<rect width="16" height="16" rx="4" fill="#0b6b63" />
				<path
					d="M4 11.5a6 6 0 0 1 6-6M4 7.5a8 8 0 0 1 4-4M8 12a3 3 0 0 1 3-3"
					stroke="#fff"
					strokeWidth="1.6"
					fill="none"
					strokeLinecap="round"
				/>
			</svg>
			<strong>Stalecast</strong> <span className="muted">example</span>
			<Chip />
		</header>
	);
}

function Chip() {
	const status = useSSEStatus();
	return (
		<span className="chip" data-status={status} role="status">
			{STATUS_TEXTS[status][0]}
		</span>
	);
}

// -- the board

function Board() {
	const { data: ids, error } = useQuery({ queryKey: ['ids'], queryFn: fetchIds });
	return (
		<section className="board" aria-labelledby="question">
			<h1 id="question">Should the library open on Sundays?</h1>
			<p className="muted">Vote, edit or add an argument, and watch another window.</p>
			{error && <p className="notice bad">The arguments could not be fetched: {error.message}</p>}
			<ul className="items">
				{ids?.map((id) => (
					<li key={id}>
						<Argument id={id} />
					</li>
				))}
			</ul>
			<NewArgument />
		</section>
	);
}

/** Changes are shown here at once; what the event then fetches is the same or newer. */
function useKeep(): (item: Item) => void {
	const queryClient = useQueryClient();
	return (item) => {
		queryClient.setQueryData<Item>(['item', item.id], (held) => (held && held.version > item.version ? held : item));
		queryClient.setQueryData<string[]>(['ids'], (ids) => (ids?.includes(item.id) ? ids : [...(ids ?? []), item.id]));
	};
}

/** A change of this window. `notice` is what went wrong with the last one. */
function useChange<V>(change: (value: V) => Promise<Item>) {
	const keep = useKeep();
	const { mutate, reset, error, isPending } = useMutation({
		mutationFn: change,
		networkMode: 'always',
		onSuccess: keep,
		onError: (problem) => {
			if (problem instanceof Untold) keep(problem.item);
		},
	});
	useSSE('argument_updated', ({ id }) => {
		// By now Stalecast has been told.
		if (error instanceof Untold && error.item.id === id) reset();
	});
	const notice = error && (
		<p className={error instanceof Untold ? 'notice' : 'notice bad'} role="alert">
			{error.message}
		</p>
	);
	return { mutate, notice, isPending };
}

function Argument({ id }: { id: string }) {
	const { data: item, error } = useQuery({ queryKey: ['item', id], queryFn: () => fetchItem(id) });
	const { mutate, notice } = useChange((change: Parameters<typeof changeItem>[1]) => changeItem(id, change));
	const [isEditing, setEditing] = useState(false);
	const editButton = useRef<HTMLButtonElement>(null);
	if (!item) {
		const text = error ? `Argument ${id} could not be fetched: ${error.message}` : 'Fetching ...';
		return <article className="item muted">{text}</article>;
	}
	const endEditing = () => {
		setEditing(false);
		// The field that had the focus is gone.
		requestAnimationFrame(() => editButton.current?.focus());
	};
	return (
		<article className="item" aria-label={`Argument ${id}`}>
			<Flash version={item.version} />
			<div className="votes">
				<button type="button" aria-label={`Vote argument ${id} up`} onClick={() => mutate({ vote: 1 })}>
					<Arrow />
				</button>
				<output aria-label={`Votes for argument ${id}`}>{item.votes}</output>
				<button type="button" aria-label={`Vote argument ${id} down`} onClick={() => mutate({ vote: -1 })}>
					<Arrow isDown />
				</button>
			</div>
			<div className="body">
				{isEditing ? (
					<Editor
						item={item}
						onEnd={endEditing}
						onSave={(text) => {
							if (text !== item.text) mutate({ text });
							endEditing();
						}}
					/>
				) : (
					<p className="text">{item.text}</p>
				)}
				{notice}
				{!isEditing && (
					<p className="meta">
						<span>
							#{id} · version {item.version}
						</span>
						<button
							ref={editButton}
							type="button"
							className="link"
							aria-label={`Edit argument ${id}`}
							onClick={() => setEditing(true)}
						>
							Edit
						</button>
					</p>
				)}
			</div>
		</article>
	);
}

/** Lights up at every version but the first that was shown. */
function Flash({ version }: { version: number }) {
	const [first] = useState(version);
	return version === first ? null : <span key={version} className="flash" aria-hidden="true" />;
}

function Arrow({ isDown = false }) {
	return (
		<svg viewBox="0 0 12 8" aria-hidden="true">
			<path d={isDown ? 'M1.5 1.5 6 6l4.5-4.5' : 'M1.5 6.5 6 2l4.5 4.5'} />
		</svg>
	);
}

function Editor({ item, onSave, onEnd }: { item: Item; onSave(text: string): void; onEnd(): void }) {
	const [text, setText] = useState(item.text);
	const [before] = useState(item.text);
	const field = useRef<HTMLTextAreaElement>(null);
	useEffect(() => {
		field.current?.focus();
		field.current?.setSelectionRange(-1, -1);
	}, []);
	const save = (event?: FormEvent) => {
		event?.preventDefault();
		if (text.trim()) onSave(text.trim());
	};
	return (
		<form className="editor" onSubmit={save}>
			<textarea
				ref={field}
				aria-label={`Text of argument ${item.id}`}
				rows={3}
				maxLength={TEXT_LIMIT_CHARS}
				value={text}
				onChange={(event) => setText(event.target.value)}
				onKeyDown={(event) => {
					if (event.key === 'Escape') onEnd();
					if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) save();
				}}
			/>
			{item.text !== before && (
				<p className="notice" role="status">
					Changed meanwhile: “{item.text}” Saving replaces that.
				</p>
			)}
			<div className="row">
				<button type="submit" className="primary" disabled={!text.trim()}>
					Save
				</button>
				<button type="button" onClick={onEnd}>
					Cancel
				</button>
			</div>
		</form>
	);
}

function NewArgument() {
	const field = useId();
	const [text, setText] = useState('');
	const { mutate, notice, isPending } = useChange(createItem);
	const add = (event: FormEvent) => {
		event.preventDefault();
		if (!text.trim()) return;
		const empty = () => setText('');
		mutate(text.trim(), { onSuccess: empty, onError: (error) => error instanceof Untold && empty() });
	};
	return (
		<form className="card new" onSubmit={add}>
			<label htmlFor={field}>Another argument</label>
			<div className="row">
				<input
					id={field}
					type="text"
					autoComplete="off"
					maxLength={TEXT_LIMIT_CHARS}
					value={text}
					onChange={(event) => setText(event.target.value)}
				/>
				<button type="submit" className="primary" disabled={isPending || !text.trim()}>
					Add
				</button>
			</div>
			{notice}
		</form>
	);
}

// -- what goes on

function Connection() {
	const sse: SSEClient = useSSEClient();
	const status = useSSEStatus();
	const [mode, setMode] = useMode(sse);
	const lastEventId = useLastEventId(sse);
	const fetches = useSyncExternalStore(fetchCount.subscribe, fetchCount.getSnapshot);
	const isCut = status === 'closed' || status === 'unauthorized';
	return (
		<section className="card" aria-labelledby="connection">
			<div className="head">
				<h2 id="connection">This window</h2>
				<button type="button" className="toggle" onClick={() => (isCut ? sse.reconnect() : sse.close())}>
					{isCut ? 'Reconnect' : 'Cut'}
				</button>
			</div>
			<p className="meaning" data-status={status}>
				<b>{STATUS_TEXTS[status][0]}.</b> {STATUS_TEXTS[status][1]}
			</p>
			<dl>
				<div>
					<dt>Fetches from the API</dt>
					<dd>{fetches}</dd>
				</div>
				<div>
					<dt>Last event id</dt>
					<dd className="mono">{lastEventId || 'none yet'}</dd>
				</div>
			</dl>
			<fieldset>
				<legend>Mode, for all windows</legend>
				<div className="segments">
					{MODES.map(([value, label]) => (
						<label key={value}>
							<input type="radio" name="mode" value={value} checked={mode === value} onChange={() => setMode(value)} />
							<span>{label}</span>
						</label>
					))}
				</div>
			</fieldset>
		</section>
	);
}

function useMode(sse: SSEClient): [Mode, (mode: Mode) => void] {
	const [, showMode] = useReducer((count: number) => count + 1, 0);
	// Another window may change it; that changes the status, too.
	const mode = useSyncExternalStore(sse.subscribe, () => sse.mode);
	const setMode = (wanted: Mode) => {
		sse.mode = wanted;
		showMode();
	};
	return [mode, setMode];
}

function useLastEventId(sse: SSEClient): string {
	const [subscribe] = useState(() => (listener: () => void) => {
		const controller = new AbortController();
		for (const type of ['message', 'began', 'statuschange'] as const) {
			sse.addEventListener(type, listener, { signal: controller.signal });
		}
		return () => controller.abort();
	});
	return useSyncExternalStore(subscribe, () => sse.lastEventId);
}

interface Row {
	at: Date;
	kind: 'event' | 'reload' | 'status';
	text: ReactNode;
	/** Since Redis took the event; this example's clocks are one. */
	afterMs?: number;
}

function useLog(): { rows: (Row & { key: number })[]; clear(): void } {
	const sse = useSSEClient();
	const [rows, add] = useReducer(
		(held: (Row & { key: number })[], row: Row | undefined) =>
			row ? [{ ...row, key: (held[0]?.key ?? 0) + 1 }, ...held].slice(0, LOG_LIMIT_ROWS) : [],
		[],
	);
	useSSE('argument_updated', ({ id, reason }, eventId) => {
		const text = (
			<>
				<b>#{id}</b> {reason}
			</>
		);
		add({ at: new Date(), kind: 'event', text, afterMs: Math.max(0, Date.now() - Number(eventId.split('-')[0])) });
	});
	useSSE('reload_required', ({ reason }) => {
		add({ at: new Date(), kind: 'reload', text: `everything may be stale: ${reason}` });
	});
	useEffect(
		() => sse.subscribe(() => add({ at: new Date(), kind: 'status', text: STATUS_TEXTS[sse.getSnapshot()][0].toLowerCase() })),
		[sse],
	);
	return { rows, clear: () => add(undefined) };
}

function Log() {
	const { rows, clear } = useLog();
	return (
		<section className="card log" aria-labelledby="log">
			<div className="head">
				<h2 id="log">Events that arrived</h2>
				<button type="button" className="link" disabled={!rows.length} onClick={clear}>
					Clear
				</button>
			</div>
			{/* oxlint-disable-next-line jsx-a11y/no-noninteractive-tabindex: it scrolls */}
			<ol tabIndex={0} aria-labelledby="log">
				{rows.map(({ key, at, kind, text, afterMs }) => (
					<li key={key} data-kind={kind}>
						<time dateTime={at.toISOString()}>{at.toLocaleTimeString('en-GB')}</time>
						<span>{text}</span>
						{afterMs !== undefined && <span className="after">{inWords(afterMs)}</span>}
					</li>
				))}
			</ol>
			{!rows.length && <p className="muted empty">Nothing yet. Vote for something.</p>}
		</section>
	);
}

function inWords(ms: number): string {
	if (ms < 1000) return `after ${ms} ms`;
	return ms < 60_000 ? `after ${(ms / 1000).toFixed(1)} s` : `after ${Math.round(ms / 60_000)} min`;
}

function TryIt() {
	return (
		<section className="card" aria-labelledby="try">
			<h2 id="try">Try it</h2>
			<ol className="try">
				<li>
					<b>Open this page in several windows.</b> One is <i>live</i>, the others are <i>followers</i>: a browser needs
					one stream for all. Close the live one, and another takes over.
				</li>
				<li>
					<b>Cut this window</b>, edit in another one, reconnect: what was missed is fetched, and nothing else.
				</li>
				<li>
					<b>Stop the Stalecast server:</b> press Enter in the terminal of <code>make example</code>, or kill it. Edit
					meanwhile. Enter starts it again, and all windows catch up.
				</li>
				<li>
					<b>Choose Poll</b>, as if a proxy held streams back: later, but nothing is lost.
				</li>
			</ol>
			<p className="muted">
				Nothing here is ever fetched again by itself (<code>staleTime: Infinity</code>). What changes, changes because of
				an event.
			</p>
		</section>
	);
}
