// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/miekg/dns"
)

const (
	headerLen = 12 // RFC 1035 section 4.1.1

	// plainUDPLimit is the size of an answer to a client that names none. The
	// reference takes 4096 rather than RFC 1035's 512 (contract 11.6); the
	// way from us to the pod is its loopback, where nothing is fragmented.
	plainUDPLimit = 4096
	// maxUDPLimit is the most that fits one IPv4 datagram.
	maxUDPLimit = 65507
)

// errMalformed is what undecodable messages end in.
var errMalformed = errors.New("malformed DNS message")

// A header is the first twelve bytes of a message.
type header struct {
	id, bits               uint16
	question, answer, rest int // records in the section; rest is authority and additional
}

func (h header) response() bool { return h.bits>>15 != 0 }
func (h header) opcode() int    { return int(h.bits>>11) & 0xf }

// parseHeader reads a header; ok is false when msg is too short for one.
func parseHeader(msg []byte) (h header, ok bool) {
	if len(msg) < headerLen {
		return header{}, false
	}
	at := func(i int) int { return int(binary.BigEndian.Uint16(msg[i:])) }
	return header{
		id:       binary.BigEndian.Uint16(msg),
		bits:     binary.BigEndian.Uint16(msg[2:]),
		question: at(4),
		answer:   at(6),
		rest:     at(8) + at(10),
	}, true
}

// unpack decodes a message. It is stricter than [dns.Msg.Unpack], which takes
// a message that ends early for one with fewer records: here the sections
// hold what the header promises, or the message is refused. Bytes after the
// last record are ignored.
func unpack(msg []byte) (*dns.Msg, error) {
	h, ok := parseHeader(msg)
	if !ok {
		return nil, errMalformed
	}
	if err := walk(msg, h); err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil {
		return nil, fmt.Errorf("%w: %v", errMalformed, err)
	}
	if len(m.Question) != h.question || len(m.Answer) != h.answer || len(m.Ns)+len(m.Extra) != h.rest {
		return nil, errMalformed
	}
	return m, nil
}

// walk checks that every record of a message lies within it, and has data if
// its type must have some.
func walk(msg []byte, h header) error {
	off := headerLen
	for range h.question {
		off = skipName(msg, off)
		if off < 0 || off+4 > len(msg) { // type, class
			return errMalformed
		}
		off += 4
	}
	for range h.answer + h.rest {
		off = skipName(msg, off)
		if off < 0 || off+10 > len(msg) { // type, class, TTL, length
			return errMalformed
		}
		length := int(binary.BigEndian.Uint16(msg[off+8:]))
		if length == 0 && !mayBeEmpty(binary.BigEndian.Uint16(msg[off:])) {
			return errMalformed
		}
		off += 10 + length
		if off > len(msg) {
			return errMalformed
		}
	}
	return nil
}

// mayBeEmpty says if a record of this type can be without data in a query or
// an answer. [dns.Msg.Unpack] lets every type be, for dynamic updates
// (RFC 2136), and then has a record with fields that cannot be written.
func mayBeEmpty(rrtype uint16) bool {
	switch rrtype {
	case dns.TypeOPT, dns.TypeNULL, dns.TypeAPL: // RFC 6891 6.1.2, RFC 1035 3.3.10, RFC 3123 4
		return true
	}
	_, known := dns.TypeToRR[rrtype]
	return !known
}

// skipName returns where the name at off ends, or -1. It does not follow
// pointers: that they lead to a name is for [dns.Msg.Unpack] to see.
func skipName(msg []byte, off int) int {
	for off < len(msg) {
		c := int(msg[off])
		switch {
		case c == 0:
			return off + 1
		case c&0xc0 == 0xc0 && off+2 <= len(msg): // RFC 1035 section 4.1.4
			return off + 2
		case c&0xc0 != 0:
			return -1
		}
		off += 1 + c
	}
	return -1
}

// formatError answers a query whose body could not be read: a header alone.
func formatError(h header) []byte {
	const (
		qr     = 1 << 15
		copied = 0xf<<11 | 1<<8 | 1<<4 // opcode, RD, CD
	)
	out := make([]byte, headerLen)
	binary.BigEndian.PutUint16(out, h.id)
	binary.BigEndian.PutUint16(out[2:], qr|h.bits&copied|dns.RcodeFormatError)
	return out
}

// replyTo begins the answer to a query: its id, opcode, question, RD and CD,
// and no flag that claims anything.
func replyTo(q *dns.Msg, rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.Id = q.Id
	m.Response = true
	m.Opcode = q.Opcode
	m.RecursionDesired = q.RecursionDesired
	m.CheckingDisabled = q.CheckingDisabled
	m.Rcode = rcode
	m.Question = q.Question
	return m
}

// pack finishes an answer: an OPT record if the query had one and this is no
// error (contract 11.6), and cut to what the transport takes. nil means that
// the message cannot be written.
func pack(m, q *dns.Msg, udp, failed bool) []byte {
	limit := dns.MaxMsgSize
	if udp {
		limit = plainUDPLimit
	}
	if opt := q.IsEdns0(); opt != nil {
		size := max(opt.UDPSize(), dns.MinMsgSize)
		if udp {
			limit = min(int(size), maxUDPLimit)
		}
		if !failed {
			m.Extra = append(m.Extra, replyOPT(opt, size))
		}
	}
	m.Truncate(limit)
	m.Compress = true // Truncate turns it off where it is not needed
	out, err := m.Pack()
	if err != nil || len(out) > limit {
		return nil
	}
	return out
}

func replyOPT(asked *dns.OPT, size uint16) *dns.OPT {
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	opt.SetUDPSize(size)
	opt.SetVersion(asked.Version())
	if asked.Do() {
		opt.SetDo()
	}
	return opt
}

// countOPT counts OPT records; more than one is a format error (RFC 6891
// section 6.1.1).
func countOPT(m *dns.Msg) int {
	n := 0
	for _, rr := range m.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			n++
		}
	}
	return n
}
