// One library on one stream, as listen.mjs does it: clients LIBRARY URL.
package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"time"

	r3labs "github.com/r3labs/sse/v2"
	gosse "github.com/tmaxmax/go-sse"
)

// For r3labs/sse, to which a clean end is the end of following.
const retry = 500 * time.Millisecond

func say(key, value string) {
	_ = json.NewEncoder(os.Stdout).Encode(map[string]string{key: value})
}

func onMessage(data []byte) {
	say("message", string(data))
	var envelope struct {
		Event string
		Data  struct{ ID, Reason string }
	}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&envelope); err != nil {
		panic(err)
	}
	switch envelope.Event {
	case "reload_required":
		say("reload", envelope.Data.Reason)
	case "argument_updated":
		say("heard", envelope.Data.ID)
	}
}

var libraries = map[string]func(string){
	"r3labs/sse": func(url string) {
		client := r3labs.NewClient(url)
		for {
			err := client.SubscribeRaw(func(event *r3labs.Event) {
				if len(event.Data) > 0 { // it makes an event of whatever stands behind the last block when the line is cut
					onMessage(event.Data)
				}
			})
			if err != nil {
				say("failed", err.Error())
			}
			time.Sleep(retry)
		}
	},
	"go-sse": func(url string) {
		request, err := http.NewRequest(http.MethodGet, url, http.NoBody)
		if err != nil {
			panic(err)
		}
		connection := gosse.NewConnection(request)
		connection.SubscribeToAll(func(event gosse.Event) { onMessage([]byte(event.Data)) })
		say("failed", connection.Connect().Error())
	},
}

func main() {
	libraries[os.Args[1]](os.Args[2])
}
