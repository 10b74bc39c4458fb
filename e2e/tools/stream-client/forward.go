package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
)

type buffer struct {
	lock sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(data []byte) (int, error) {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.text.Write(data)
}

func (b *buffer) String() string {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.text.String()
}

// forward listens on a port of the loopback that leads to the pod's, lets work use it, and ends.
func forward(dialer httpstream.Dialer, port int, work func(address string) any) any {
	stop, ready := make(chan struct{}), make(chan struct{})
	said, wrong := &buffer{}, &buffer{}
	// What kubectl prints on stderr, the words of the error stream among it.
	runtime.ErrorHandlers = append(runtime.ErrorHandlers, func(_ context.Context, err error, message string, _ ...any) {
		fmt.Fprintf(wrong, "%s: %v\n", message, err)
	})
	ports := []string{fmt.Sprintf("0:%d", port)}
	forwarder, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, ports, stop, ready, said, wrong)
	check(err)
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	result := map[string]any{}
	begun := time.Now()
	select {
	case err = <-ended:
	case <-ready:
		found, failure := forwarder.GetPorts()
		check(failure)
		result["work"] = work(fmt.Sprintf("127.0.0.1:%d", found[0].Local))
		close(stop)
		err = <-ended
	}
	result["seconds"] = time.Since(begun).Seconds()
	result["errors"] = wrong.String()
	if err != nil {
		result["error"] = err.Error()
	}
	return result
}

func keepAlive(address string, requests int) any {
	client := &http.Client{Timeout: time.Minute}
	reused, bodies, failures := 0, []string{}, []string{}
	for range requests {
		request, err := http.NewRequest("GET", "http://"+address+"/", nil)
		check(err)
		trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
			if info.Reused {
				reused++
			}
		}}
		answer, err := client.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
		if err != nil {
			failures = append(failures, err.Error())
			continue
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			failures = append(failures, err.Error())
		}
		bodies = append(bodies, string(body))
	}
	client.CloseIdleConnections()
	return map[string]any{"reused": reused, "bodies": bodies, "failures": failures}
}

// echo sends on many connections at once, each half-closed when all is sent, and compares what comes back.
// None sends its bulk before all of them stand and have answered a first byte.
func echo(address string, connections, size int) any {
	var lock sync.Mutex
	var failures []string
	var standing, done sync.WaitGroup
	standing.Add(connections)
	equal := 0
	for number := range connections {
		done.Go(func() {
			err := echoOne(address, size, &standing)
			lock.Lock()
			defer lock.Unlock()
			if err == nil {
				equal++
			} else {
				failures = append(failures, fmt.Sprintf("%d: %v", number, err))
			}
		})
	}
	done.Wait()
	return map[string]any{"equal": equal, "failures": failures}
}

func echoOne(address string, size int, standing *sync.WaitGroup) error {
	arrived := sync.OnceFunc(standing.Done)
	defer arrived()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	data := make([]byte, size)
	rand.Read(data)
	back := make([]byte, size)
	if _, err := conn.Write(data[:1]); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, back[:1]); err != nil {
		return err
	}
	arrived()
	standing.Wait()
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data[1:])
		if err == nil {
			err = conn.(*net.TCPConn).CloseWrite()
		}
		sent <- err
	}()
	rest, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	copy(back[1:], rest)
	if len(rest) != size-1 || !bytes.Equal(back, data) {
		return fmt.Errorf("%d of %d bytes came back, or others", len(rest)+1, size)
	}
	return <-sent
}

// say sends a text on one connection, ends its own half, and gives what comes until the other half ends.
func say(address, text string) any {
	conn, err := net.Dial("tcp", address)
	check(err)
	defer conn.Close()
	check(conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = io.Copy(conn, strings.NewReader(text))
	if err == nil {
		err = conn.(*net.TCPConn).CloseWrite()
	}
	heard, failure := io.ReadAll(conn)
	if err == nil {
		err = failure
	}
	result := map[string]any{"heard": string(heard)}
	if err != nil {
		result["error"] = err.Error()
	}
	return result
}
