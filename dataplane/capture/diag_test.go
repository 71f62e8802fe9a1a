// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// diagMessage is what inet_diag said of one connection, with mark and role.
func diagMessage() []byte {
	b := make([]byte, diagMessageLen)
	b[0], b[1] = unix.AF_INET, tcpEstablished
	id := b[diagIDOffset:]
	binary.BigEndian.PutUint16(id[0:], 4242)
	binary.BigEndian.PutUint16(id[2:], 443)
	copy(id[4:], []byte{10, 1, 0, 2})
	copy(id[20:], []byte{203, 0, 113, 9})
	binary.NativeEndian.PutUint32(id[40:], 7)
	attr := func(kind uint16, value []byte) []byte {
		a := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
		return append(binary.NativeEndian.AppendUint16(a, kind), value...)
	}
	word := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	b = append(b, attr(attrMark, word(0x1000))...)
	return append(b, attr(attrStorages|unix.NLA_F_NESTED,
		attr(1|unix.NLA_F_NESTED, append(attr(2, word(99)), attr(attrStorageMapValue, word(roleConfine))...)))...)
}

func TestReadsWhatInetDiagSays(t *testing.T) {
	whole := diagMessage()
	s, ok := parseSocket(whole)
	want := tcpSocket{state: tcpEstablished, family: unix.AF_INET, mark: 0x1000, role: roleConfine, cookie: 7,
		local: netip.MustParseAddrPort("10.1.0.2:4242"), remote: netip.MustParseAddrPort("203.0.113.9:443"), id: s.id}
	if !ok || s != want {
		t.Errorf("%+v, %v", s, ok)
	}
	for n := range whole {
		if s, ok := parseSocket(whole[:n]); ok != (n >= diagMessageLen) || (ok && s.local != want.local) {
			t.Errorf("%d bytes: %+v, %v", n, s, ok)
		}
	}
}

func FuzzParseSocket(f *testing.F) {
	f.Add(diagMessage())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, ok := parseSocket(b); ok && len(b) < diagMessageLen {
			t.Error("read more than there is")
		}
	})
}

func TestSocketsOfANamespaceAreCounted(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	for want := range 3 {
		if n, err := tcpInUse(pod.NS()); n != want || err != nil {
			t.Errorf("%d sockets, %v; want %d", n, err, want)
		}
		l, err := pod.Listen("tcp", []string{"127.0.0.1:0", "[::1]:0", "[::]:0"}[want])
		must(t, err)
		t.Cleanup(func() { l.Close() })
	}
}

func TestWhatIsDearIsDoneSeldom(t *testing.T) {
	var b budget
	done := 0
	work := func() error { done++; time.Sleep(5 * time.Millisecond); return errors.New("done") }
	if err := b.run(work); err == nil {
		t.Error("its error is lost")
	}
	must(t, b.run(work)) // it is too early
	b.next = time.Now()
	if err := b.run(work); err == nil || done != 2 {
		t.Errorf("it was done %d times, %v", done, err)
	}
}
