package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
)

const kept = 64 * 1024

type commandOptions struct {
	terminal       bool
	stdin, script  string
	stdout, stderr bool
}

// output is what came on one stream: all of it counted, the beginning kept.
type output struct {
	Text   string `json:"text"`
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`

	lock    sync.Mutex
	changed *sync.Cond
	sum     hash.Hash
	seen    bytes.Buffer
	over    bool
}

func newOutput() *output {
	made := &output{sum: sha256.New()}
	made.changed = sync.NewCond(&made.lock)
	return made
}

func (o *output) Write(data []byte) (int, error) {
	o.lock.Lock()
	defer o.lock.Unlock()
	o.Bytes += len(data)
	o.sum.Write(data)
	if room := kept - o.seen.Len(); room > 0 {
		o.seen.Write(data[:min(room, len(data))])
	}
	o.changed.Broadcast()
	return len(data), nil
}

func (o *output) end() {
	o.lock.Lock()
	defer o.lock.Unlock()
	o.Text, o.SHA256, o.over = o.seen.String(), hex.EncodeToString(o.sum.Sum(nil)), true
	o.changed.Broadcast()
}

// await blocks until the text came, after what an earlier call found, or the stream is over.
func (o *output) await(text string, from int) (int, error) {
	o.lock.Lock()
	defer o.lock.Unlock()
	for {
		if at := bytes.Index(o.seen.Bytes()[from:], []byte(text)); at >= 0 {
			return from + at + len(text), nil
		}
		if o.over {
			return from, fmt.Errorf("%q never came after %q", text, o.seen.String())
		}
		o.changed.Wait()
	}
}

// step of a dialogue: await a text on stdout, then resize the terminal, then send, then end stdin.
type step struct {
	Expect string    `json:"expect"`
	Size   [2]uint16 `json:"size"`
	Send   string    `json:"send"`
	End    bool      `json:"end"`
}

type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, open := <-s
	if !open {
		return nil
	}
	return &size
}

func talk(steps []step, heard *output, to *io.PipeWriter, resized sizes) error {
	at := 0
	for _, each := range steps {
		if each.Expect != "" {
			found, err := heard.await(each.Expect, at)
			if err != nil {
				return err
			}
			at = found
		}
		if each.Size[0] != 0 {
			resized <- remotecommand.TerminalSize{Width: each.Size[0], Height: each.Size[1]}
		}
		if each.Send != "" {
			if _, err := to.Write([]byte(each.Send)); err != nil {
				return err
			}
		}
		if each.End {
			return to.Close()
		}
	}
	return nil
}

type outcome struct {
	Code    int     `json:"code"`
	Error   string  `json:"error"`
	Talk    string  `json:"talk"`
	Seconds float64 `json:"seconds"`
	Stdout  *output `json:"stdout"`
	Stderr  *output `json:"stderr"`
}

// judge tells an exit code from a failure.
func (o *outcome) judge(err error) {
	var exit utilexec.CodeExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		o.Code = exit.Code
	default:
		o.Code, o.Error = -1, err.Error()
	}
}

func command(ctx context.Context, executor remotecommand.Executor, options commandOptions) any {
	result := &outcome{Stdout: newOutput(), Stderr: newOutput()}
	streams := remotecommand.StreamOptions{Tty: options.terminal}
	if options.stdout {
		streams.Stdout = result.Stdout
	}
	if options.stderr {
		streams.Stderr = result.Stderr
	}
	if options.stdin != "" {
		file, err := os.Open(options.stdin)
		check(err)
		streams.Stdin = file
	}
	talked := make(chan error, 1)
	var reader *io.PipeReader
	if options.script != "" {
		text, err := os.ReadFile(options.script)
		check(err)
		var steps []step
		check(json.Unmarshal(text, &steps))
		var writer *io.PipeWriter
		reader, writer = io.Pipe()
		streams.Stdin = reader
		resized := make(sizes, len(steps))
		if options.terminal {
			streams.TerminalSizeQueue = resized
		}
		go func() { talked <- talk(steps, result.Stdout, writer, resized) }()
	} else {
		talked <- nil
	}
	begun := time.Now()
	result.judge(executor.StreamWithContext(ctx, streams))
	result.Seconds = time.Since(begun).Seconds()
	result.Stdout.end()
	result.Stderr.end()
	if reader != nil {
		reader.Close()
	}
	if err := <-talked; err != nil {
		result.Talk = err.Error()
	}
	return result
}
