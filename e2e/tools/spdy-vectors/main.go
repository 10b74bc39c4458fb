// Records what the SPDY implementation of Kubernetes' clients and servers writes.
//
//	go run . >../../../cri/streaming/tests/go-session.json
//
// An exec session between its client and its server, and one of each frame that they never send.
package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/moby/spdystream"
	"github.com/moby/spdystream/spdy"
	"k8s.io/streaming/pkg/httpstream"
	streamspdy "k8s.io/streaming/pkg/httpstream/spdy"
)

type recorded struct {
	net.Conn
	lock sync.Mutex
	sent bytes.Buffer
}

func (r *recorded) Write(data []byte) (int, error) {
	r.lock.Lock()
	r.sent.Write(data)
	r.lock.Unlock()
	return r.Conn.Write(data)
}

func (r *recorded) hex() string {
	r.lock.Lock()
	defer r.lock.Unlock()
	return hex.EncodeToString(r.sent.Bytes())
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func session(client, server *recorded) {
	streams := make(chan httpstream.Stream, 4)
	serving, err := streamspdy.NewServerConnection(server, func(s httpstream.Stream, _ <-chan struct{}) error {
		streams <- s
		return nil
	})
	must(err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		byType := map[string]httpstream.Stream{}
		for range 4 {
			s := <-streams
			byType[s.Headers().Get("streamType")] = s
		}
		// The replies are sent after the handler has returned.
		given, err := io.ReadAll(byType["stdin"])
		must(err)
		_, err = byType["stdout"].Write(given)
		must(err)
		must(byType["stdout"].Close())
		_, err = byType["error"].Write([]byte(`{"metadata":{},"status":"Success"}`))
		must(err)
		must(byType["error"].Close())
	}()
	calling, err := spdystream.NewConnection(client, false)
	must(err)
	go calling.Serve(spdystream.NoOpStreamHandler)
	create := func(kind string) *spdystream.Stream {
		s, err := calling.CreateStream(http.Header{"Streamtype": []string{kind}}, nil, false)
		must(err)
		must(s.WaitTimeout(10 * time.Second))
		return s
	}
	status, stdin, stdout, resize := create("error"), create("stdin"), create("stdout"), create("resize")
	_, err = calling.Ping()
	must(err)
	_, err = resize.Write([]byte("{\"Width\":80,\"Height\":24}\n"))
	must(err)
	_, err = stdin.Write([]byte("hello "))
	must(err)
	_, err = stdin.Write(bytes.Repeat([]byte("x"), 1000))
	must(err)
	must(stdin.Close())
	_, err = io.ReadAll(stdout)
	must(err)
	_, err = io.ReadAll(status)
	must(err)
	must(resize.Reset())
	<-served
	must(calling.Close())
	// It may have closed by itself, at the GOAWAY of the other end.
	_ = serving.Close()
}

func frames() string {
	var out bytes.Buffer
	framer, err := spdy.NewFramer(&out, nil)
	must(err)
	headers := http.Header{"One": []string{"1"}, "Many": []string{"a", "b"}}
	fin := spdy.ControlFrameHeader{Flags: spdy.ControlFlagFin}
	for _, frame := range []spdy.Frame{
		&spdy.SettingsFrame{FlagIdValues: []spdy.SettingsFlagIdValue{
			{Id: spdy.SettingsMaxConcurrentStreams, Value: 100}, {Flag: 1, Id: spdy.SettingsInitialWindowSize, Value: 70000}}},
		&spdy.SynStreamFrame{StreamId: 1, Priority: 5, Headers: headers},
		&spdy.WindowUpdateFrame{StreamId: 1, DeltaWindowSize: 1000},
		&spdy.WindowUpdateFrame{StreamId: 0, DeltaWindowSize: 2000},
		&spdy.HeadersFrame{StreamId: 1, Headers: headers},
		&spdy.SynStreamFrame{CFHeader: fin, StreamId: 3, AssociatedToStreamId: 1, Headers: http.Header{}},
		&spdy.RstStreamFrame{StreamId: 1, Status: spdy.InternalError},
		&spdy.PingFrame{Id: 7},
		&spdy.GoAwayFrame{LastGoodStreamId: 0, Status: spdy.GoAwayInternalError},
	} {
		must(framer.WriteFrame(frame))
	}
	return hex.EncodeToString(out.Bytes())
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	dialled, err := net.Dial("tcp", listener.Addr().String())
	must(err)
	accepted, err := listener.Accept()
	must(err)
	client, server := &recorded{Conn: dialled}, &recorded{Conn: accepted}
	session(client, server)
	result := map[string]string{"client": client.hex(), "server": server.hex(), "frames": frames()}
	must(json.NewEncoder(os.Stdout).Encode(result))
}
