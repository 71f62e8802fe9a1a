// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

/* The short way
 *
 *	packet --plain?--> question known, and made of what holds now? --> patched copy
 *	   |                       |
 *	   +--------- no ----------+--> handle, which leaves its answer here
 *
 * Nearly all queries are plain: one question, at most a bare OPT. Their answers
 * are kept as handle packed them, and given again with another id, other times
 * and the addresses in another order, without decoding anything. What is kept
 * rests on one edition of the mesh and one resolv.conf, and all of it goes when
 * either changes. So there is one meaning, and two speeds; FuzzShortWay holds
 * the one against the other.
 */

const (
	// maxKept is how many bytes of answers a pod has ready, counted with
	// keptCost for what each takes beside them. At the limit all are dropped:
	// who asks for more names than that has no use for them.
	maxKept  = 1 << 20
	keptCost = 256

	optLen = 11 // an OPT record without options (RFC 6891 section 6.1.2)

	bitRD = 1 << 8
	bitCD = 1 << 4
	bitAD = 1 << 5
)

// A ground is what kept answers rest on.
type ground struct {
	edition uint64      // of the mesh
	conf    *ResolvConf // which servers were asked, and what completes names; may be nil
}

// A plain is what the short way reads of a query.
type plain struct {
	key  []byte // the question as it came
	id   []byte
	bits uint16 // RD and CD
	opt  bool
	size uint16 // of OPT
	tail uint32 // OPT's version and DO, as they are answered
}

// readPlain reads a query, if it is one that the short way understands: one
// question whose name is no pointer, perhaps an OPT without options, no more.
func readPlain(packet []byte) (p plain, ok bool) {
	if len(packet) < headerLen {
		return p, false
	}
	bits := binary.BigEndian.Uint16(packet[2:])
	counts := binary.BigEndian.Uint64(packet[4:])
	if bits&^(bitRD|bitCD|bitAD) != 0 || counts&^1 != 1<<48 {
		return p, false
	}
	end := headerLen
	for end < len(packet) && packet[end] != 0 {
		if packet[end] > 63 {
			return p, false
		}
		end += 1 + int(packet[end])
	}
	end += 5 // the root, type and class
	if end-headerLen-4 > 255 || end > len(packet) {
		return p, false
	}
	p.id, p.key, p.bits = packet[:2], packet[headerLen:end], bits&(bitRD|bitCD)
	rest := packet[end:]
	if p.opt = counts&1 == 1; !p.opt {
		return p, len(rest) == 0
	}
	if len(rest) != optLen || rest[0] != 0 || binary.BigEndian.Uint16(rest[1:]) != dns.TypeOPT ||
		rest[5] != 0 || binary.BigEndian.Uint16(rest[9:]) != 0 {
		return p, false
	}
	const version, do = 0xff << 16, 1 << 15
	p.size = max(binary.BigEndian.Uint16(rest[3:]), dns.MinMsgSize)
	p.tail = binary.BigEndian.Uint32(rest[5:]) & (version | do)
	return p, true
}

// limit is how long an answer by UDP may be.
func (p plain) limit() int {
	if p.opt {
		return min(int(p.size), maxUDPLimit)
	}
	return plainUDPLimit
}

// A kept answer is one to be given again. It does not change.
type kept struct {
	packed []byte // with id, RD, CD and OPT left out
	length int    // as long as it is at most, without OPT: uncompressed
	opt    bool   // whether OPT is answered: errors have none
	cost   int    // bytes it takes, about
	count  func(took time.Duration)

	addrs []netip.Addr // to be shuffled, if more than one
	at    []int        // where they are in packed

	// Of what upstream said only:
	stored, expires time.Time
	ttls            []int // where times are in packed
}

// A shelf has the kept answers of one pod.
type shelf struct {
	mu    sync.Mutex // guards everything below
	on    ground
	byKey map[string]*kept
	bytes int
}

func (f *shelf) get(key []byte, on ground) *kept {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.on != on {
		f.clear(on)
		return nil
	}
	return f.byKey[string(key)]
}

// put keeps an answer that rests on a ground, unless that has gone.
func (f *shelf) put(key []byte, on ground, k *kept) {
	k.cost = len(key) + len(k.packed) + 24*len(k.addrs) + 8*(len(k.at)+len(k.ttls)) + keptCost
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.on != on || f.byKey == nil {
		if on.edition < f.on.edition {
			return
		}
		f.clear(on)
	}
	if old := f.byKey[string(key)]; old != nil {
		f.bytes -= old.cost
		delete(f.byKey, string(key))
	}
	if f.bytes+k.cost > maxKept {
		f.clear(on)
	}
	f.bytes += k.cost
	f.byKey[string(key)] = k
}

// clear begins anew. The caller holds mu.
func (f *shelf) clear(on ground) {
	f.on, f.bytes = on, 0
	f.byKey = map[string]*kept{}
}

func (s *Server) ground() ground { return ground{s.view.Edition(), s.source.now()} }

// A scratch is what one reader needs for its answers.
type scratch struct {
	out   []byte
	addrs []netip.Addr
}

// quick answers a query by UDP the short way, if that leads to an answer; else
// nil. What it returns is good until the next call with the same scratch.
func (s *Server) quick(packet []byte, w *scratch) []byte {
	p, ok := readPlain(packet)
	if !ok || s.access.Enabled(s.ctx, slog.LevelDebug) {
		return nil
	}
	k := s.shelf.get(p.key, s.ground())
	if k == nil || k.length+optLen > p.limit() {
		return nil
	}
	var start time.Time
	if !k.expires.IsZero() {
		if start = time.Now(); !start.Before(k.expires) {
			return nil
		}
	}
	out := append(w.out[:0], k.packed...)
	copy(out, p.id)
	binary.BigEndian.PutUint16(out[2:], binary.BigEndian.Uint16(out[2:])|p.bits)
	if len(k.addrs) > 1 {
		w.addrs = append(w.addrs[:0], k.addrs...)
		s.shuffle(w.addrs)
		for i, a := range w.addrs {
			write(out[k.at[i]:], a)
		}
	}
	if len(k.ttls) > 0 {
		age := uint32(max(0, start.Sub(k.stored)) / time.Second)
		for _, at := range k.ttls {
			ttl := binary.BigEndian.Uint32(out[at:])
			binary.BigEndian.PutUint32(out[at:], ttl-min(age, ttl))
		}
	}
	if p.opt && k.opt {
		out[11]++ // records of the additional section: there are few, see layout
		out = append(out, 0, 0, byte(dns.TypeOPT), byte(p.size>>8), byte(p.size))
		out = binary.BigEndian.AppendUint32(out, p.tail)
		out = append(out, 0, 0)
	}
	w.out = out
	took := time.Duration(0)
	if !start.IsZero() {
		took = time.Since(start)
	}
	k.count(took)
	return out
}

func write(to []byte, a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		copy(to, b[:])
	} else {
		b := a.As16()
		copy(to, b[:])
	}
}

// keepFor leaves an answer for the short way, if the query that it is to can come
// that way. m is without OPT; failed says that it is an error, or none at all.
func (s *Server) keepFor(q *query, m *dns.Msg, failed bool, k *kept) {
	p, ok := readPlain(q.packet)
	if !ok || q.protocol != "udp" || q.on != s.ground() {
		return
	}
	if k.expires.IsZero() && s.shelf.get(p.key, q.on) != nil {
		return // too long for this query, but there
	}
	c := *m
	c.Compress = false
	if k.length = c.Len(); k.length > maxUDPLimit {
		return // no query by UDP has it whole
	}
	c.Compress = true
	packed, err := c.Pack()
	if err != nil || len(packed) < headerLen+len(p.key) || !bytes.Equal(packed[headerLen:headerLen+len(p.key)], p.key) {
		return
	}
	clear(packed[:2])
	bits := binary.BigEndian.Uint16(packed[2:])
	binary.BigEndian.PutUint16(packed[2:], bits&^(bitRD|bitCD))
	k.packed, k.opt = packed, !failed
	if k.layout(len(p.key)) {
		s.shelf.put(p.key, q.on, k)
	}
}

// keepForwarded is keepFor for what upstream said, which holds for as long as
// the cache keeps it, or a shorter time of an additional record.
func (s *Server) keepForwarded(q *query, m *dns.Msg, got reply, labels labelSet) {
	if got.from == nil {
		return
	}
	k := &kept{stored: got.from.stored.Add(got.age), expires: got.from.expires}
	for _, rr := range m.Extra {
		if end := k.stored.Add(time.Duration(rr.Header().Ttl) * time.Second); end.Before(k.expires) {
			k.expires = end
		}
	}
	if !time.Now().Before(k.expires) {
		return
	}
	k.count = s.metrics.forwardedAgain(labels, got.msg == nil)
	s.keepFor(q, m, got.msg == nil, k)
}

// layout finds the places that differ from answer to answer, and reports
// whether it could.
func (k *kept) layout(question int) bool {
	h, ok := parseHeader(k.packed)
	if !ok || k.packed[10] != 0 || k.packed[11] > 100 {
		return false
	}
	off := headerLen + question
	for range h.answer + h.rest {
		if off = skipName(k.packed, off); off < 0 || off+10 > len(k.packed) {
			return false
		}
		rtype := binary.BigEndian.Uint16(k.packed[off:])
		switch {
		case !k.expires.IsZero():
			k.ttls = append(k.ttls, off+4)
		case rtype == dns.TypeA || rtype == dns.TypeAAAA:
			k.at = append(k.at, off+10)
		}
		off += 10 + int(binary.BigEndian.Uint16(k.packed[off+8:]))
	}
	return off == len(k.packed) && len(k.at) == len(k.addrs)
}
