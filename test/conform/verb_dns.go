// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// A question is one query of a scenario.
type question struct {
	place, server, name string
	qtype               uint16
	tcp                 bool
	edns                int
	raw                 []byte
}

// dnsVerb: dns place @server TYPE name [tcp] [edns n] -> RCODE [check...], or
// dns place @server raw 0x... [tcp] -> silence | RCODE [check...]
func dnsVerb(r *reader) action {
	q := question{place: r.place(), server: strings.TrimPrefix(r.bare("@server"), "@")}
	kind := r.bare("a type")
	if kind == "raw" {
		b, err := hex.DecodeString(strings.TrimPrefix(r.bare("bytes in hex"), "0x"))
		if err != nil {
			r.fail("%w", err)
		}
		q.raw = b
	} else {
		qtype, ok := dns.StringToType[kind]
		if !ok {
			r.fail("%q is no type", kind)
		}
		q.qtype, q.name = qtype, r.bare("a name")
	}
	for r.more() && r.words[0].text != "->" {
		switch r.oneOf("option", "tcp", "edns") {
		case "tcp":
			q.tcp = true
		case "edns":
			q.edns = r.number("size")
		}
	}
	r.want("->")
	rcode := r.bare("a code")
	if _, ok := dns.StringToRcode[rcode]; !ok && rcode != "silence" {
		r.fail("%q is no code", rcode)
	}
	checks := readDNSChecks(r)
	return func(ctx context.Context, p *player) error {
		m, err := p.resolve(ctx, q)
		if rcode == "silence" {
			if err == nil {
				return fmt.Errorf("it answered %v", m)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if got := dns.RcodeToString[m.Rcode]; got != rcode {
			return fmt.Errorf("it answered %s", got)
		}
		for _, c := range checks {
			text, err := p.expand(c.text)
			if err != nil {
				return err
			}
			if err := c.look(m, text); err != nil {
				return err
			}
		}
		return nil
	}
}

// silenceAfter is how long a server is waited for that must not answer.
const silenceAfter = 500 * time.Millisecond

func (p *player) resolve(ctx context.Context, q question) (*dns.Msg, error) {
	at, err := p.expand(q.server)
	if err != nil {
		return nil, err
	}
	server, err := netip.ParseAddr(at)
	if err != nil {
		return nil, err
	}
	network := "udp"
	if q.tcp {
		network = "tcp"
	}
	c, err := p.suite.Stage.Dial(ctx, q.place, network, netip.AddrPortFrom(server, 53))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	packet, id := q.raw, uint16(0)
	if packet == nil {
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(q.name), q.qtype)
		if q.edns > 0 {
			m.SetEdns0(uint16(q.edns), false)
		}
		id = m.Id
		if packet, err = m.Pack(); err != nil {
			return nil, err
		}
	}
	until, _ := ctx.Deadline()
	if q.raw != nil {
		until = time.Now().Add(silenceAfter)
	}
	c.SetDeadline(until)
	answer, err := exchange(c, packet, q.tcp)
	if err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil {
		return nil, err
	}
	if q.raw == nil && m.Id != id {
		return nil, errors.New("the answer has another id")
	}
	return m, nil
}

func exchange(c net.Conn, packet []byte, tcp bool) ([]byte, error) {
	if !tcp {
		if _, err := c.Write(packet); err != nil {
			return nil, err
		}
		b := make([]byte, 65535)
		n, err := c.Read(b)
		return b[:n], err
	}
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, b)
	return b, err
}

// A dnsCheck looks at an answer.
type dnsCheck struct {
	kind, text string
	number     int
}

func readDNSChecks(r *reader) (checks []dnsCheck) {
	for r.more() {
		c := dnsCheck{kind: r.oneOf("check", "flags", "answer", "count", "question", "edns", "noedns", "noauthority")}
		switch c.kind {
		case "flags", "answer", "question":
			c.text = r.text("a text")
		case "count", "edns":
			c.number = r.number("number")
		}
		checks = append(checks, c)
	}
	return checks
}

func (c dnsCheck) look(m *dns.Msg, text string) error {
	switch c.kind {
	case "flags":
		if got := flagsOf(m); got != text {
			return fmt.Errorf("the flags are %q", got)
		}
	case "answer":
		var got []string
		for _, rr := range m.Answer {
			got = append(got, strings.Join(strings.Fields(rr.String()), " "))
		}
		want := strings.Split(text, ", ")
		if text == "" {
			want = nil
		}
		slices.Sort(got) // shuffled on purpose
		slices.Sort(want)
		if !slices.Equal(got, want) {
			return fmt.Errorf("the answers are %q", got)
		}
	case "count":
		if len(m.Answer) != c.number {
			return fmt.Errorf("there are %d answers", len(m.Answer))
		}
	case "question":
		if len(m.Question) != 1 || m.Question[0].Name != text {
			return fmt.Errorf("the question is %v", m.Question)
		}
	case "edns":
		if o := m.IsEdns0(); o == nil || int(o.UDPSize()) != c.number || len(o.Option) > 0 {
			return fmt.Errorf("OPT is %v", o)
		}
	case "noedns":
		if o := m.IsEdns0(); o != nil {
			return fmt.Errorf("OPT is %v", o)
		}
	case "noauthority":
		if len(m.Ns) > 0 {
			return fmt.Errorf("the authority is %v", m.Ns)
		}
	}
	return nil
}

// flagsOf are the flags of a header, in the order of the wire.
func flagsOf(m *dns.Msg) string {
	var all []string
	for _, f := range []struct {
		set  bool
		name string
	}{{m.Response, "qr"}, {m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.RecursionDesired, "rd"},
		{m.RecursionAvailable, "ra"}, {m.AuthenticatedData, "ad"}, {m.CheckingDisabled, "cd"}} {
		if f.set {
			all = append(all, f.name)
		}
	}
	return strings.Join(all, " ")
}
