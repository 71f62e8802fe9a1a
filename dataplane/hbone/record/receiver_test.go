// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"errors"
	"strings"
	"testing"
)

func receiver(t testing.TB, client bool) (*Receiver, *twin) {
	t.Helper()
	s := fresh(tls.TLS_AES_128_GCM_SHA256)
	r, err := NewReceiver(ReceiverState{State: s, Client: client})
	if err != nil {
		t.Fatal(err)
	}
	return &r, newTwin(s)
}

// ticket is a NewSessionTicket with n bytes of body, of which nobody looks at any.
func ticket(n int) []byte {
	return append([]byte{4, byte(n >> 16), byte(n >> 8), byte(n)}, make([]byte, n)...)
}

// A sent is a record of the peer.
type sent struct {
	t Type
	b []byte
}

func hs(b ...byte) sent  { return sent{Handshake, b} }
func al(b ...byte) sent  { return sent{AlertType, b} }
func data(s string) sent { return sent{ApplicationData, []byte(s)} }
func times(n int, s sent) (many []sent) {
	for range n {
		many = append(many, s)
	}
	return many
}

func TestReceives(t *testing.T) {
	k := ticket(100)
	for _, tc := range []struct {
		name    string
		records []sent
		client  bool
		want    Event // of the last record; those before must be good
		alert   Alert // instead
		remote  bool
	}{
		{name: "data", records: []sent{data("x")}, want: Data},
		{name: "no data", records: []sent{data("")}, want: Nothing},
		{name: "a ticket", client: true, records: []sent{hs(k...)}, want: Nothing},
		{name: "two tickets in one record", client: true, records: []sent{hs(append(k, k...)...), data("x")}, want: Data},
		{name: "a ticket over three records, one within its header", client: true, records: []sent{hs(k[:2]...), hs(k[2:50]...), hs(k[50:]...), data("x")}, want: Data},
		{name: "a ticket over two records, and one more", client: true, records: []sent{hs(k[:50]...), hs(append(k[50:], k...)...), data("x")}, want: Data},
		{name: "the longest ticket", client: true, records: []sent{hs(ticket(maxMessage)[:MaxContent]...)}, want: Nothing},
		{name: "a ticket too long", client: true, records: []sent{hs(ticket(maxMessage + 1)[:100]...)}, alert: DecodeError},
		{name: "a ticket too short", client: true, records: []sent{hs(ticket(minTicket - 1)...)}, alert: DecodeError},
		{name: "a ticket for a server", records: []sent{hs(k...)}, alert: UnexpectedMessage},
		{name: "an empty handshake record", client: true, records: []sent{hs()}, alert: UnexpectedMessage},
		{name: "CertificateRequest", client: true, records: []sent{hs(13, 0, 0, 3, 0, 0, 0)}, alert: UnexpectedMessage},
		{name: "Finished", client: true, records: []sent{hs(20, 0, 0, 32)}, alert: UnexpectedMessage},
		{name: "ClientHello", records: []sent{hs(1, 0, 0, 32)}, alert: UnexpectedMessage},
		{name: "data within a message", client: true, records: []sent{hs(k[:50]...), data("x")}, alert: UnexpectedMessage},
		{name: "nothing within a message", client: true, records: []sent{hs(k[:3]...), data("")}, alert: UnexpectedMessage},
		{name: "close_notify within a message", client: true, records: []sent{hs(k[:50]...), al(1, 0)}, alert: UnexpectedMessage},

		{name: "KeyUpdate", records: []sent{hs(24, 0, 0, 1, 0), data("x")}, want: Data},
		{name: "KeyUpdate for a client", client: true, records: []sent{hs(24, 0, 0, 1, 0), data("x")}, want: Data},
		{name: "KeyUpdate that asks", records: []sent{hs(24, 0, 0, 1, 1)}, want: Answer},
		{name: "KeyUpdate over five records", records: []sent{hs(24), hs(0), hs(0), hs(1), hs(1)}, want: Answer},
		{name: "KeyUpdate after a ticket", client: true, records: []sent{hs(append(k, 24, 0, 0, 1, 1)...)}, want: Answer},
		{name: "KeyUpdate that asks for what there is not", records: []sent{hs(24, 0, 0, 1, 2)}, alert: IllegalParameter},
		{name: "KeyUpdate without a body", records: []sent{hs(24, 0, 0, 0)}, alert: DecodeError},
		{name: "KeyUpdate with two bytes", records: []sent{hs(24, 0, 0, 2, 0, 0)}, alert: DecodeError},
		{name: "a message after KeyUpdate in its record", client: true, records: []sent{hs(append([]byte{24, 0, 0, 1, 0}, k...)...)}, alert: UnexpectedMessage},
		{name: "two KeyUpdates in a record", records: []sent{hs(24, 0, 0, 1, 0, 24, 0, 0, 1, 0)}, alert: UnexpectedMessage},

		{name: "close_notify", records: []sent{al(1, 0)}, want: Closed},
		{name: "close_notify that says it is fatal", records: []sent{al(2, 0)}, want: Closed},
		{name: "user_canceled", records: []sent{al(1, 90), al(1, 0)}, want: Closed},
		{name: "an alert", records: []sent{al(2, 42)}, alert: 42, remote: true},
		{name: "an alert that says it is a warning", records: []sent{al(1, 48)}, alert: 48, remote: true},
		{name: "an alert that nobody knows", records: []sent{al(1, 200)}, alert: 200, remote: true},
		{name: "an empty alert", records: []sent{al()}, alert: UnexpectedMessage},
		{name: "half an alert", records: []sent{al(2)}, alert: DecodeError},
		{name: "two alerts in a record", records: []sent{al(1, 90, 1, 0)}, alert: DecodeError},

		{name: "change_cipher_spec within", records: []sent{{ChangeCipherSpec, []byte{1}}}, alert: UnexpectedMessage},
		{name: "a type that nobody knows", records: []sent{{99, []byte{1}}}, alert: UnexpectedMessage},
		{name: "as much of nothing as may be", records: append(times(maxUseless, data("")), data("x")), want: Data},
		{name: "a flood of nothing", records: times(maxUseless+1, data("")), alert: UnexpectedMessage},
		{name: "a flood of user_canceled", records: times(maxUseless+1, al(1, 90)), alert: UnexpectedMessage},
		{name: "a flood of tickets", client: true, records: times(maxUseless+1, hs(k...)), alert: UnexpectedMessage},
		{name: "a flood of KeyUpdates", records: times(maxUseless+1, hs(24, 0, 0, 1, 0)), alert: UnexpectedMessage},
		{name: "a message a byte at a time", client: true, records: append([]sent{hs(k[:4]...)}, times(maxUseless, hs(7))...), alert: UnexpectedMessage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, w := receiver(t, tc.client)
			for i, s := range tc.records {
				_, event, err := r.Receive(w.seal(s.t, s.b, i%3))
				if bytes.HasSuffix(s.b, []byte{24, 0, 0, 1, 0}) || bytes.HasSuffix(s.b, []byte{24, 0, 0, 1, 1}) {
					w.update()
				}
				last := i == len(tc.records)-1
				var e *AlertError
				switch {
				case !last && err != nil:
					t.Fatalf("record %d: %v", i, err)
				case last && tc.alert == 0 && (err != nil || event != tc.want):
					t.Errorf("event %d, %v; want %d", event, err, tc.want)
				case last && tc.alert != 0 && (!errors.As(err, &e) || e.Alert != tc.alert || e.Remote != tc.remote):
					t.Errorf("event %d, %v; want %v", event, err, tc.alert)
				}
			}
		})
	}
}

// What a receiver is between any two records can go elsewhere.
func TestAReceiverGoesOnElsewhere(t *testing.T) {
	k := ticket(1000)
	r, w := receiver(t, true)
	for i, s := range []sent{data("a"), hs(k[:1]...), hs(k[1:4]...), hs(k[4:900]...), hs(append(k[900:], k[:3]...)...), hs(k[3:]...), hs(24, 0, 0), hs(1, 0), data("z")} {
		state := r.State()
		again, err := NewReceiver(state)
		if err != nil {
			t.Fatal(err)
		}
		if again.State() != state {
			t.Errorf("step %d: %+v became %+v", i, state, again.State())
		}
		r = &again
		if _, _, err := r.Receive(w.seal(s.t, s.b, 0)); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if i == 7 {
			w.update()
		}
	}
	r.Wipe()
	if *r != (Receiver{}) {
		t.Error("something is left after Wipe")
	}
}

func TestRefusesAReceiverThatNeverWas(t *testing.T) {
	for _, change := range []func(*ReceiverState){
		func(s *ReceiverState) { s.HeaderN = 5 },
		func(s *ReceiverState) { s.HeaderN, s.Left = 3, 1 },
		func(s *ReceiverState) { s.HeaderN, s.Left = 4, maxMessage+1 },
		func(s *ReceiverState) { s.HeaderN, s.Left, s.Header = 4, 1, [4]byte{20, 0, 0, 1} },
		func(s *ReceiverState) { s.HeaderN, s.Left, s.Header = 4, 0, [4]byte{24, 0, 0, 1} },
		func(s *ReceiverState) { s.HeaderN, s.Left, s.Header = 4, 2, [4]byte{24, 0, 0, 2} },
		func(s *ReceiverState) { s.HeaderN, s.Left, s.Header = 4, 101, [4]byte{4, 0, 0, 100} },
		func(s *ReceiverState) { s.Useless = maxUseless + 1 },
	} {
		s := ReceiverState{State: fresh(suites[0]), Client: true}
		change(&s)
		if _, err := NewReceiver(s); err == nil {
			t.Errorf("made from %d %d %v %d", s.HeaderN, s.Left, s.Header, s.Useless)
		} else if strings.Contains(err.Error(), "Secret") {
			t.Errorf("the error shows the state: %v", err)
		}
	}
}

func TestAlertsReadAsCryptoTLSHasThem(t *testing.T) {
	for _, tc := range []struct {
		err  *AlertError
		text string
	}{
		{&AlertError{Alert: 42, Remote: true}, "remote error: tls: bad certificate"},
		{&AlertError{Alert: 48, Remote: true}, "remote error: tls: unknown certificate authority"},
		{&AlertError{Alert: BadRecordMAC, Reason: "record 3 does not authenticate"}, "local error: tls: bad record MAC (record 3 does not authenticate)"},
	} {
		if got := tc.err.Error(); got != tc.text {
			t.Errorf("%q, want %q", got, tc.text)
		}
		var std tls.AlertError
		if !errors.As(tc.err, &std) || Alert(std) != tc.err.Alert {
			t.Errorf("%v is no tls.AlertError", tc.err)
		}
	}
	for a := range 256 {
		if s := Alert(a).String(); s == "" || strings.ContainsAny(s, " -") {
			t.Errorf("alert %d is called %q", a, s)
		}
	}
}
