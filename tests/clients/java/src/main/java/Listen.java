import com.google.gson.Gson;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.launchdarkly.eventsource.EventSource;
import com.launchdarkly.eventsource.MessageEvent;
import com.launchdarkly.eventsource.background.BackgroundEventHandler;
import com.launchdarkly.eventsource.background.BackgroundEventSource;
import java.net.URI;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.sse.EventSourceListener;
import okhttp3.sse.EventSources;

/** One library on one stream, as listen.mjs does it: Listen LIBRARY URL. */
public final class Listen {
    /** For okhttp-sse, which leaves the reconnecting to the application. */
    private static final long RETRY_MS = 500;

    private static synchronized void say(String key, String value) {
        System.out.println(new Gson().toJson(Map.of(key, value)));
    }

    private static void onMessage(String data) {
        say("message", data);
        JsonObject envelope = JsonParser.parseString(data).getAsJsonObject();
        JsonObject what = envelope.getAsJsonObject("data");
        switch (envelope.get("event").getAsString()) {
            case "reload_required" -> say("reload", what.get("reason").getAsString());
            case "argument_updated" -> say("heard", what.get("id").getAsString());
            default -> { }
        }
    }

    private static void followWithOkhttpEventsource(String url) throws InterruptedException {
        BackgroundEventHandler handler = new BackgroundEventHandler() {
            @Override public void onOpen() { }
            @Override public void onClosed() { }
            @Override public void onComment(String comment) { }
            @Override public void onMessage(String event, MessageEvent message) { Listen.onMessage(message.getData()); }
            @Override public void onError(Throwable error) { say("failed", error.toString()); }
        };
        new BackgroundEventSource.Builder(handler, new EventSource.Builder(URI.create(url))).build().start();
        Thread.currentThread().join(); // its own threads do not keep the process
    }

    private static void followWithOkhttpSse(String url) throws InterruptedException {
        OkHttpClient client = new OkHttpClient();
        String[] lastEventId = {null};
        while (true) {
            CountDownLatch ended = new CountDownLatch(1);
            Request.Builder request = new Request.Builder().url(url);
            if (lastEventId[0] != null) request.header("Last-Event-ID", lastEventId[0]);
            EventSources.createFactory(client).newEventSource(request.build(), new EventSourceListener() {
                @Override public void onEvent(okhttp3.sse.EventSource source, String id, String type, String data) {
                    if (id != null) lastEventId[0] = id;
                    Listen.onMessage(data);
                }
                @Override public void onClosed(okhttp3.sse.EventSource source) { ended.countDown(); }
                @Override public void onFailure(okhttp3.sse.EventSource source, Throwable error, Response response) {
                    say("failed", String.valueOf(error));
                    ended.countDown();
                }
            });
            ended.await();
            Thread.sleep(RETRY_MS);
        }
    }

    public static void main(String[] arguments) throws InterruptedException {
        switch (arguments[0]) {
            case "okhttp-eventsource" -> followWithOkhttpEventsource(arguments[1]);
            case "okhttp-sse" -> followWithOkhttpSse(arguments[1]);
            default -> throw new IllegalArgumentException(arguments[0]);
        }
    }
}
