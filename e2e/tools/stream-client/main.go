// Drives the URLs that CRI's Exec, Attach and PortForward return with the client library of Kubernetes.
//
//	stream-client exec     -url U [-transport T] [-tty] [-stdin FILE] [-script FILE] [-no-stdout] [-no-stderr]
//	stream-client type     -url U [-transport T] -keys N
//	stream-client upload   -url U [-transport T] -dir DIR
//	stream-client download -url U [-transport T] -dir DIR
//	stream-client forward  -url U [-transport T] -port N -http N | -echo N -size BYTES | -text TEXT [-drain N]
//
// T is spdy, websocket, or fallback: WebSocket first, then SPDY, as kubectl does it. `exec` serves attach,
// too. What happened is printed as one JSON object. Exit code 1: the program was used wrongly.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

type target struct {
	url       *url.URL
	transport string
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "error: "+format+"\n", args...)
	os.Exit(1)
}

func check(err error) {
	if err != nil {
		fail("%v", err)
	}
}

// deaf is a server that knows no WebSocket: what a fallback is there for.
func deaf() *url.URL {
	server := httptest.NewServer(http.NotFoundHandler())
	found, err := url.Parse(server.URL)
	check(err)
	return found
}

func (t target) executor() remotecommand.Executor {
	config := &rest.Config{}
	switch t.transport {
	case "spdy":
		made, err := remotecommand.NewSPDYExecutor(config, "POST", t.url)
		check(err)
		return made
	case "websocket":
		made, err := remotecommand.NewWebSocketExecutor(config, "GET", t.url.String())
		check(err)
		return made
	case "fallback":
		first := target{deaf(), "websocket"}.executor()
		made, err := remotecommand.NewFallbackExecutor(first, target{t.url, "spdy"}.executor(), httpstream.IsUpgradeFailure)
		check(err)
		return made
	}
	fail("unknown transport %q", t.transport)
	return nil
}

func (t target) dialer() httpstream.Dialer {
	config := &rest.Config{}
	switch t.transport {
	case "spdy":
		transport, upgrader, err := spdy.RoundTripperFor(config)
		check(err)
		return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, "POST", t.url)
	case "websocket":
		made, err := portforward.NewSPDYOverWebsocketDialerForStreaming(t.url, config)
		check(err)
		return made
	case "fallback":
		first := target{deaf(), "websocket"}.dialer()
		return portforward.NewFallbackDialerForStreaming(first, target{t.url, "spdy"}.dialer(), httpstream.IsUpgradeFailure)
	}
	fail("unknown transport %q", t.transport)
	return nil
}

func main() {
	if len(os.Args) < 2 {
		fail("a command is missing")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	address := flags.String("url", "", "what CRI returned")
	transport := flags.String("transport", "spdy", "spdy, websocket or fallback")
	tty := flags.Bool("tty", false, "a terminal")
	stdin := flags.String("stdin", "", "the file that is stdin; none unless it is named")
	script := flags.String("script", "", "steps of a dialogue; see talk")
	noStdout := flags.Bool("no-stdout", false, "do not ask for stdout")
	noStderr := flags.Bool("no-stderr", false, "do not ask for stderr")
	dir := flags.String("dir", "", "the tree to copy from or to")
	port := flags.Int("port", 0, "the port in the pod")
	requests := flags.Int("http", 0, "HTTP requests over one kept connection")
	echoes := flags.Int("echo", 0, "connections at once, whose bytes come back")
	size := flags.Int("size", 1<<16, "bytes on each of them")
	drains := flags.Int("drain", 0, "connections at once, which are read to their end")
	keys := flags.Int("keys", 0, "keys to press at a terminal")
	text := flags.String("text", "", "what is sent on a connection; the only one is then half-closed")
	limit := flags.Duration("limit", 4*time.Minute, "when exec, upload and download are given up")
	check(flags.Parse(os.Args[2:]))
	parsed, err := url.Parse(*address)
	check(err)
	where := target{parsed, *transport}
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()

	var result any
	switch os.Args[1] {
	case "exec":
		result = command(ctx, where.executor(), commandOptions{
			terminal: *tty, stdin: *stdin, script: *script, stdout: !*noStdout, stderr: !*noStderr && !*tty,
		})
	case "type":
		result = typing(ctx, where.executor(), *keys)
	case "upload":
		result = upload(ctx, where.executor(), *dir)
	case "download":
		result = download(ctx, where.executor(), *dir)
	case "forward":
		result = forward(where.dialer(), *port, func(address string) any {
			switch {
			case *requests > 0:
				return keepAlive(address, *requests)
			case *drains > 0:
				return drain(address, *drains, *text)
			case *echoes > 0:
				return echo(address, *echoes, *size)
			default:
				return say(address, *text)
			}
		})
	default:
		fail("unknown command %q", os.Args[1])
	}
	check(json.NewEncoder(os.Stdout).Encode(result))
}
