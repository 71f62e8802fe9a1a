// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzReceive gives a stream of anything to a receiver, as an engine would:
// every record that is refused is refused with an alert, and no record that
// was not sealed is opened.
func FuzzReceive(f *testing.F) {
	stream := vectorStream(f)
	f.Add(stream, true)
	f.Add(stream, false)
	f.Add(stream[:len(stream)-1], true)
	f.Add([]byte{23, 3, 3, 0, 0}, true)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), false)
	f.Fuzz(func(t *testing.T, b []byte, client bool) {
		r, err := NewReceiver(ReceiverState{State: state(t, vectorServerSecret), Client: client})
		if err != nil {
			t.Fatal(err)
		}
		rest, good := bytes.Clone(b), vectorStream(t)
		for {
			n, err := Length(rest)
			if n > MaxLength || n > 0 && n < HeaderLen {
				t.Fatalf("a length of %d", n)
			}
			if err != nil || n == 0 || n > len(rest) {
				mustBeAlert(t, err)
				return
			}
			genuine := len(b)-len(rest)+n <= len(good) && bytes.Equal(b[:len(b)-len(rest)+n], good[:len(b)-len(rest)+n])
			content, event, err := r.Receive(rest[:n])
			if err == nil && !genuine {
				t.Fatalf("opened what nobody sealed: %x, event %d", content, event)
			}
			if mustBeAlert(t, err); err != nil {
				return
			}
			rest = rest[n:]
		}
	})
}

func mustBeAlert(t *testing.T, err error) {
	t.Helper()
	var e *AlertError
	if err != nil && !errors.As(err, &e) {
		t.Fatalf("%v is no alert", err)
	}
}

// FuzzMessages gives any content of any types, sealed, to a receiver: what it
// says must not depend on how handshake messages are cut into records, as
// long as no cut or join is at fault itself.
func FuzzMessages(f *testing.F) {
	f.Add(ticket(20), uint8(7), true)
	f.Add(append(ticket(14), 24, 0, 0, 1, 1), uint8(3), true)
	f.Add([]byte{24, 0, 0, 1, 0, 24, 0, 0, 1, 1}, uint8(5), false)
	f.Add([]byte{13, 0, 0, 3, 0, 0, 0}, uint8(1), true)
	f.Fuzz(func(t *testing.T, b []byte, cut uint8, client bool) {
		if len(b) == 0 || len(b) > 8<<10 {
			return
		}
		step := max(int(cut), len(b)/maxUseless+1)
		whole, cutUp := play(t, b, len(b), client), play(t, b, step, client)
		if whole.err == "" && cutUp != whole {
			t.Errorf("%x whole: %+v; in pieces of %d: %+v", b, whole, step, cutUp)
		}
	})
}

type played struct {
	state ReceiverState
	last  Event
	err   string
}

// play sends b in handshake records of n bytes.
func play(t *testing.T, b []byte, n int, client bool) played {
	r, w := receiver(t, client)
	var p played
	for len(b) > 0 {
		k := min(n, len(b))
		before := r.State().Secret
		_, event, err := r.Receive(w.seal(Handshake, b[:k], 0))
		if mustBeAlert(t, err); err != nil {
			p.err = err.Error()
			break
		}
		p.last = max(p.last, event)
		if r.State().Secret != before {
			w.update()
		}
		if !r.possible() {
			t.Fatalf("an impossible state: %+v", r.State())
		}
		b = b[k:]
	}
	p.state = r.State()
	p.state.Seq, p.state.Useless = 0, 0
	return p
}
