// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// ednsPayload is what we offer to take by UDP: with IPv6 it is not
	// fragmented on any link (the DNS flag day of 2020; the reference's
	// default).
	ednsPayload = 1232

	// udpBuffer takes what servers send that ignore the limit of 512 or 1232.
	// A datagram that fills it counts as truncated.
	udpBuffer = 4096

	// tcpConnectTimeout is contract 11.7's.
	tcpConnectTimeout = 5 * time.Second
)

// errMismatch says that a TCP answer was to another question. By UDP such an
// answer is not an error but somebody's attempt, and ignored.
var errMismatch = errors.New("answer does not match the question")

// An inquiry is a question as it is sent to one server.
type inquiry struct {
	id       uint16
	question dns.Question
	packed   []byte
}

// inquire gives a question a random id, which with the random port is what
// keeps others from answering it (RFC 5452).
func inquire(q dns.Question, edns bool) (*inquiry, error) {
	var id [2]byte
	rand.Read(id[:]) // never fails (crypto/rand since Go 1.24)
	m := new(dns.Msg)
	m.Id = binary.BigEndian.Uint16(id[:])
	m.RecursionDesired = true
	m.Question = []dns.Question{q}
	if edns {
		m.SetEdns0(ednsPayload, false)
	}
	packed, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack question: %v", err)
	}
	return &inquiry{m.Id, q, packed}, nil
}

// exchange asks one server: by UDP, and by TCP if the answer did not fit.
func (u *upstream) exchange(ctx context.Context, server netip.AddrPort, q dns.Question) (*dns.Msg, error) {
	inq, err := inquire(q, u.EDNS)
	if err != nil {
		return nil, err
	}
	var m *dns.Msg
	if !u.UseTCP {
		m, err = u.overUDP(ctx, server, inq)
	}
	if err == nil && (m == nil || m.Truncated) {
		m, err = u.overTCP(ctx, server, inq)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("ask %v: %w", server, ctx.Err()) // not "i/o timeout", which tie made of it
	case err != nil:
		return nil, fmt.Errorf("ask %v: %w", server, err)
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		return nil, fmt.Errorf("ask %v: answered %s", server, rcodeName(m.Rcode))
	case m.Truncated:
		return nil, fmt.Errorf("ask %v: truncated even by TCP", server)
	}
	return m, nil
}

func rcodeName(rcode int) string {
	if name, ok := dns.RcodeToString[rcode]; ok {
		return name
	}
	return fmt.Sprintf("code %d", rcode)
}

// tie makes what waits on a connection fail when ctx ends, be it cancelled or
// out of time. done unties and closes it.
func tie(ctx context.Context, c net.Conn) (done func()) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(longAgo()) })
	return func() { stop(); c.Close() }
}

// overUDP waits for the datagram that answers; others are ignored, so that a
// wrong guess does not end the wait.
func (u *upstream) overUDP(ctx context.Context, server netip.AddrPort, inq *inquiry) (*dns.Msg, error) {
	c, err := u.dial(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer tie(ctx, c)()
	if _, err := c.Write(inq.packed); err != nil {
		return nil, err
	}
	buf := make([]byte, udpBuffer)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if m := inq.accept(buf[:n], n == len(buf)); m != nil {
			return m, nil
		}
	}
}

func (u *upstream) overTCP(ctx context.Context, server netip.AddrPort, inq *inquiry) (*dns.Msg, error) {
	connecting, cancel := context.WithTimeout(ctx, tcpConnectTimeout)
	defer cancel()
	c, err := u.dial(connecting, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer tie(ctx, c)()
	if err := writeFrame(c, inq.packed); err != nil {
		return nil, err
	}
	packet, err := readFrame(c)
	if err != nil {
		return nil, err
	}
	if m := inq.accept(packet, false); m != nil {
		return m, nil
	}
	return nil, errMismatch
}

// accept decodes packet if it answers the question, and returns nil if not.
// Of a truncated answer only header and question are read, for some servers
// cut in the middle of a record; cut says that it was truncated on its way.
func (inq *inquiry) accept(packet []byte, cut bool) *dns.Msg {
	h, ok := parseHeader(packet)
	if !ok || h.id != inq.id || !h.response() || h.opcode() != dns.OpcodeQuery {
		return nil
	}
	const tc = 1 << 9
	if cut = cut || h.bits&tc != 0; cut {
		packet = append([]byte(nil), packet...)
		clear(packet[6:headerLen]) // answer, authority, additional: none
	}
	m, err := unpack(packet)
	if err != nil {
		return nil
	}
	m.Truncated = cut
	if len(m.Question) == 0 && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return m // some servers refuse with a header alone
	}
	if len(m.Question) != 1 {
		return nil
	}
	got := m.Question[0]
	if got.Qtype != inq.question.Qtype || got.Qclass != inq.question.Qclass || !strings.EqualFold(got.Name, inq.question.Name) {
		return nil
	}
	return m
}

// readFrame reads one message of a TCP stream (RFC 1035 section 4.2.2).
func readFrame(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(r, msg); err != nil {
		return nil, err
	}
	return msg, nil
}

// writeFrame writes one message, of at most 65535 bytes, in one piece.
func writeFrame(w io.Writer, msg []byte) error {
	frame := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	_, err := w.Write(append(frame, msg...))
	return err
}
