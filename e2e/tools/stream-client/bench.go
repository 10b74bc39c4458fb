package main

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"k8s.io/client-go/tools/remotecommand"
)

// drain makes connections at once, sends a text on each, and reads them to their end.
func drain(address string, connections int, text string) any {
	var lock sync.Mutex
	var done sync.WaitGroup
	var total int64
	failures := []string{}
	begun := time.Now()
	for range connections {
		done.Go(func() {
			count, err := drainOne(address, text)
			lock.Lock()
			defer lock.Unlock()
			total += count
			if err != nil {
				failures = append(failures, err.Error())
			}
		})
	}
	done.Wait()
	return map[string]any{"bytes": total, "seconds": time.Since(begun).Seconds(), "failures": failures}
}

func drainOne(address, text string) (int64, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		return 0, err
	}
	return io.Copy(io.Discard, conn)
}

// typist hears its keys come back.
type typist struct {
	echoes chan struct{}
}

func (t *typist) Write(data []byte) (int, error) {
	for _, each := range data {
		if each == 'x' {
			t.echoes <- struct{}{}
		}
	}
	return len(data), nil
}

// typing presses keys at a terminal that echoes them, each when the one before has come back, and tells how long each
// took in milliseconds.
func typing(ctx context.Context, executor remotecommand.Executor, keys int) any {
	heard := &typist{make(chan struct{}, keys)}
	reader, writer := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: reader, Stdout: heard, Tty: true})
	}()
	took := []float64{}
	for range keys {
		begun := time.Now()
		if _, err := writer.Write([]byte("x")); err != nil {
			break
		}
		select {
		case <-heard.echoes:
		case err := <-ended:
			check(err)
			fail("the terminal ended")
		}
		took = append(took, time.Since(begun).Seconds()*1000)
		time.Sleep(5 * time.Millisecond)
	}
	// Interrupted: the keys are an unfinished line.
	_, _ = writer.Write([]byte{3})
	writer.Close()
	<-ended
	return map[string]any{"ms": took}
}
