// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// requestFrame is a CONNECT on a stream.
func requestFrame(id uint32) []byte {
	block := wire.AppendBlock(nil, []wire.Field{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: "10.0.0.1:80"}})
	return append(appendHead(nil, len(block), frameHeaders, flagEndHeaders, id), block...)
}

// A peer that never reads makes us keep what we have to answer, whether or not
// it pays for its questions with data. The bound is a number of answers.
func TestAnswersThatNobodyReadsAreBounded(t *testing.T) {
	for name, ask := range map[string]func(i int) []byte{
		"refused requests": func(i int) []byte { return requestFrame(uint32(2*i + 1)) },
		"pings paid for with data": func(i int) []byte {
			var b []byte
			if i == 0 {
				b = requestFrame(1)
			}
			b = append(appendHead(b, 1, frameData, 0, 1), 'x')
			return append(appendHead(b, 8, framePing, 0, 0), "whatever"...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			ours, theirs := fds[0], fds[1]
			t.Cleanup(func() { unix.Close(theirs) })
			if err := errors.Join(unix.SetNonblock(ours, true), unix.SetsockoptInt(ours, unix.SOL_SOCKET, unix.SO_SNDBUF, 4096)); err != nil {
				t.Fatal(err)
			}
			heard := make(chan struct{}, 1)
			tunnel := r.engine.Server(ours, nil, Config{Request: func(q *Request) {
				if name == "refused requests" {
					q.Reject(503)
				} else {
					q.Accept(nil).Join(discard(t))
				}
				q.Release()
				heard <- struct{}{}
			}})
			t.Cleanup(tunnel.Close)
			hello := append([]byte(clientPreface), appendHead(nil, 0, frameSettings, 0, 0)...)
			write := func(b []byte) bool {
				_, err := unix.Write(theirs, b)
				return err == nil
			}
			const enough = 20 * maxProvoked
			for i := 0; i < enough && write(append(hello, ask(i)...)); i++ {
				hello = nil
				if name == "refused requests" || i == 0 {
					select {
					case <-heard:
					case <-tunnel.gone:
					case <-time.After(patience):
						t.Fatal("a request was not heard")
					}
				}
			}
			var g *wire.GoAwayError
			if err := tunnel.Wait(); !errors.As(err, &g) || g.Code != wire.EnhanceYourCalm || g.Remote {
				t.Errorf("the tunnel ended with %v", err)
			}
		})
	}
}
