// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

// fresh is a State of a made-up secret.
func fresh(suite uint16) State {
	s := State{Suite: suite}
	n := 32
	if suite == tls.TLS_AES_256_GCM_SHA384 {
		n = 48
	}
	for i := range n {
		s.Secret[i] = byte(3*i + 1)
	}
	return s
}

var suites = []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384}

func half(t testing.TB, s State) *Half {
	t.Helper()
	h, err := NewHalf(s)
	if err != nil {
		t.Fatal(err)
	}
	return &h
}

// sealed returns one record of content.
func sealed(t testing.TB, h *Half, content []byte) []byte {
	t.Helper()
	slot := make([]byte, len(content)+Overhead)
	copy(slot[HeaderLen:], content)
	n, err := h.Seal(slot, len(content))
	if err != nil || n != len(slot) {
		t.Fatalf("%d bytes sealed to %d, %v", len(content), n, err)
	}
	return slot
}

// wantAlert wants an error that tells the peer a.
func wantAlert(t testing.TB, what string, err error, a Alert) {
	t.Helper()
	var e *AlertError
	if !errors.As(err, &e) || e.Alert != a || e.Remote {
		t.Errorf("%s: %v, want %v", what, err, a)
	}
}

func TestSealsWhatATwinOpens(t *testing.T) {
	for _, suite := range suites {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			h, w := half(t, fresh(suite)), newTwin(fresh(suite))
			for _, n := range []int{0, 1, 17, 1000, MaxContent - 1, MaxContent} {
				content := bytes.Repeat([]byte{byte(n), 0}, n)[:n]
				inner, err := w.open(sealed(t, h, content))
				if err != nil || !bytes.Equal(inner, append(content, 23)) {
					t.Errorf("%d bytes: %d inside, %v", n, len(inner), err)
				}
			}
		})
	}
}

func TestOpensWhatATwinSeals(t *testing.T) {
	for _, suite := range suites {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			h, w := half(t, fresh(suite)), newTwin(fresh(suite))
			for _, tc := range []struct{ n, padding int }{{0, 0}, {1, 0}, {0, 100}, {50, 1}, {MaxContent, 0}, {1, MaxContent - 1}} {
				content := bytes.Repeat([]byte{0, 7}, tc.n)[:tc.n]
				got, typ, err := h.Open(w.seal(ApplicationData, content, tc.padding))
				if err != nil || typ != ApplicationData || !bytes.Equal(got, content) {
					t.Errorf("%d bytes and %d of padding: %d, type %d, %v", tc.n, tc.padding, len(got), typ, err)
				}
			}
		})
	}
}

func TestRefusesRecordsThatAreNone(t *testing.T) {
	for _, tc := range []struct {
		name   string
		record func(w *twin) []byte
		want   Alert
	}{
		{"a plain alert", func(*twin) []byte { return []byte{21, 3, 3, 0, 2, 2, 40} }, UnexpectedMessage},
		{"plain change_cipher_spec", func(*twin) []byte { return []byte{20, 3, 3, 0, 1, 1} }, UnexpectedMessage},
		{"a plain handshake message", func(*twin) []byte { return []byte{22, 3, 3, 0, 5, 24, 0, 0, 1, 0} }, UnexpectedMessage},
		{"HTTP", func(*twin) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }, UnexpectedMessage},
		{"no body", func(*twin) []byte { return []byte{23, 3, 3, 0, 0} }, BadRecordMAC},
		{"less than a tag", func(*twin) []byte { return append([]byte{23, 3, 3, 0, 15}, make([]byte, 15)...) }, BadRecordMAC},
		{"a body too long", func(*twin) []byte { return append([]byte{23, 3, 3, 0x41, 1}, make([]byte, 0x4101)...) }, RecordOverflow},
		{"a body of the greatest length, sealed", func(w *twin) []byte { return w.seal(ApplicationData, make([]byte, 10), 1<<14+256-16-11) }, RecordOverflow},
		{"content one too long", func(w *twin) []byte { return w.seal(ApplicationData, make([]byte, MaxContent+1), 0) }, RecordOverflow},
		{"padding one too long", func(w *twin) []byte { return w.seal(ApplicationData, make([]byte, 1), MaxContent) }, RecordOverflow},
		{"nothing inside", func(w *twin) []byte { return w.sealInner(nil) }, UnexpectedMessage},
		{"padding alone", func(w *twin) []byte { return w.sealInner(make([]byte, 100)) }, UnexpectedMessage},
		{"padding alone, of the greatest length", func(w *twin) []byte { return w.sealInner(make([]byte, MaxContent+1)) }, UnexpectedMessage},
		{"another version than was sealed", func(w *twin) []byte {
			b := w.seal(ApplicationData, make([]byte, 10), 0)
			b[2] = 1
			return b
		}, BadRecordMAC},
	} {
		_, _, err := half(t, fresh(suites[0])).Open(tc.record(newTwin(fresh(suites[0]))))
		wantAlert(t, tc.name, err, tc.want)
	}
}

func TestRefusesARecordWithAnyByteChanged(t *testing.T) {
	rec := sealed(t, half(t, fresh(suites[0])), []byte("sixteen or so bytes"))
	for i := range rec {
		bad := bytes.Clone(rec)
		bad[i] ^= 1
		if b, _, err := half(t, fresh(suites[0])).Open(bad); err == nil {
			t.Errorf("byte %d changed, and %d bytes came out", i, len(b))
		}
	}
}

func TestRefusesReplayReorderAndGaps(t *testing.T) {
	h := half(t, fresh(suites[1]))
	records := [][]byte{sealed(t, h, []byte("one")), sealed(t, h, []byte("two")), sealed(t, h, []byte("three"))}
	for _, order := range [][]int{{0, 0}, {1}, {0, 2}, {0, 1, 0}, {0, 1, 1}} {
		in := half(t, fresh(suites[1]))
		for i, k := range order {
			_, _, err := in.Open(bytes.Clone(records[k]))
			if last := i == len(order)-1; last {
				wantAlert(t, "out of order", err, BadRecordMAC)
			} else if err != nil {
				t.Errorf("order %v, record %d: %v", order, i, err)
			}
		}
	}
}

func TestUsesNoSequenceNumberTwice(t *testing.T) {
	for _, suite := range suites {
		rnd := rand.New(rand.NewPCG(1, uint64(suite)))
		h, w := half(t, fresh(suite)), newTwin(fresh(suite))
		slot := make([]byte, 100+Overhead)
		for i := range 5000 {
			var n int
			var err error
			switch k := rnd.IntN(100); {
			case k < 80:
				n, err = h.Seal(slot, rnd.IntN(100))
			case k < 85:
				n, err = h.KeyUpdate(slot, k%2 == 0)
			case k < 90:
				n, err = h.Alert(slot, UserCanceled)
			case k < 95: // it goes on elsewhere
				h = half(t, h.State())
				continue
			default: // what fails must use none
				if n, err := h.Seal(slot[:10], 0); err == nil {
					t.Fatalf("sealed %d bytes in a slot of 10", n)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			inner, err := w.open(slot[:n])
			if err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
			if inner[len(inner)-1] == byte(Handshake) {
				w.update()
			}
		}
	}
}

func TestEndsAKeyBeforeItIsWornOut(t *testing.T) {
	s := fresh(suites[0])
	slot := make([]byte, 64)
	s.Seq = UpdateAfter - 1
	h := half(t, s)
	if h.Due() {
		t.Error("an update is due too early")
	}
	if _, err := h.Seal(slot, 1); err != nil || !h.Due() {
		t.Errorf("no update is due: %v", err)
	}
	s.Seq = keyLimit
	h = half(t, s)
	before := bytes.Clone(slot)
	if n, err := h.Seal(slot, 1); !errors.Is(err, ErrKeyLimit) || n != 0 || !bytes.Equal(slot, before) {
		t.Errorf("beyond the limit: %d, %v", n, err)
	}
	if _, err := h.KeyUpdate(slot, false); err != nil {
		t.Errorf("the way out: %v", err)
	}
	if n, err := h.Seal(slot, 1); err != nil || n != 1+Overhead || h.State().Seq != 1 || h.Due() {
		t.Errorf("with a new key: %d, %v", n, err)
	}
}

func TestSequenceNumbersDoNotWrap(t *testing.T) {
	s := fresh(suites[0])
	s.Seq = math.MaxUint64 - 1
	h := half(t, s)
	slot := make([]byte, 64)
	if _, err := h.Alert(slot, CloseNotify); err != nil {
		t.Errorf("the last number: %v", err)
	}
	_, err := h.Alert(slot, CloseNotify)
	wantAlert(t, "beyond the last number", err, InternalError)
	_, _, err = h.Open(append([]byte{23, 3, 3, 0, 17}, make([]byte, 17)...))
	wantAlert(t, "opened beyond the last number", err, InternalError)
}

func TestKnowsTwoSuites(t *testing.T) {
	for _, id := range []uint16{0, tls.TLS_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256} {
		if _, err := NewHalf(State{Suite: id}); !errors.Is(err, ErrSuite) {
			t.Errorf("suite %04x: %v", id, err)
		}
		if _, err := NewReceiver(ReceiverState{State: State{Suite: id}}); !errors.Is(err, ErrSuite) {
			t.Errorf("suite %04x received: %v", id, err)
		}
	}
}

func TestAWipedHalfDoesNothing(t *testing.T) {
	h := half(t, fresh(suites[0]))
	rec := sealed(t, h, []byte("x"))
	h.Wipe()
	if *h != (Half{}) {
		t.Error("something is left of it")
	}
	if _, err := h.Seal(make([]byte, 64), 1); err == nil {
		t.Error("it seals")
	}
	if _, err := h.KeyUpdate(make([]byte, 64), false); err == nil {
		t.Error("it updates")
	}
	if err := h.Update(); err == nil {
		t.Error("it goes on to another key")
	}
	if _, _, err := h.Open(rec); err == nil {
		t.Error("it opens")
	}
}

func TestRefusesSlotsThatAreTooSmall(t *testing.T) {
	h := half(t, fresh(suites[0]))
	for _, tc := range []struct{ slot, n int }{{Overhead - 1, 0}, {Overhead, 1}, {64, -1}, {1 << 16, MaxContent + 1}} {
		if n, err := h.Seal(make([]byte, tc.slot), tc.n); err == nil {
			t.Errorf("%d bytes in a slot of %d: %d", tc.n, tc.slot, n)
		}
	}
	if _, err := h.Alert(make([]byte, ControlLen-1), CloseNotify); err == nil {
		t.Error("an alert")
	}
	if _, err := h.KeyUpdate(make([]byte, ControlLen-1), true); err == nil {
		t.Error("a KeyUpdate")
	}
	if h.State().Seq != 0 {
		t.Error("a number was used")
	}
}

func TestAllocatesNothingPerRecord(t *testing.T) {
	out, in := half(t, fresh(suites[0])), half(t, fresh(suites[0]))
	slot := make([]byte, 1000+Overhead)
	round := func() {
		if _, err := out.Seal(slot, 1000); err != nil {
			t.Fatal(err)
		}
		if _, _, err := in.Open(slot); err != nil {
			t.Fatal(err)
		}
	}
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations for a record sealed and opened", n)
	}
}

func BenchmarkSeal(b *testing.B) { benchmark(b, false) }
func BenchmarkOpen(b *testing.B) { benchmark(b, true) }

// benchmark seals, and opens if asked, records of the two usual sizes.
func benchmark(b *testing.B, open bool) {
	for _, suite := range suites {
		for _, n := range []int{64, MaxContent} {
			b.Run(tls.CipherSuiteName(suite)+map[bool]string{true: "/64", false: "/16K"}[n == 64], func(b *testing.B) {
				s := fresh(suite)
				out, in := half(b, s), half(b, s)
				slot := make([]byte, n+Overhead)
				kept := sealed(b, half(b, s), make([]byte, n))
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					if !open {
						out.state.Seq = 0
						if _, err := out.Seal(slot, n); err != nil {
							b.Fatal(err)
						}
						continue
					}
					in.state.Seq = 0
					copy(slot, kept)
					if _, _, err := in.Open(slot); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
