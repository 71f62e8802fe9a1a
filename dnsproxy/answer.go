// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/miekg/dns"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// clientWait is how long a query waits for the pod's workload to be known
// (contract 11.2).
const clientWait = 5 * time.Second

// A query is one well-formed question on its way to an answer.
type query struct {
	packet   []byte // as it came
	msg      *dns.Msg
	on       ground // when it came
	protocol string // udp or tcp
	name     string // fully qualified, lower case
	qtype    uint16
	client   *mesh.Workload // nil: unknown
}

// handle answers a message; nil means that there is no answer to give. It
// blocks as long as upstream takes, or until ctx ends.
func (s *Server) handle(ctx context.Context, packet []byte, protocol string) []byte {
	msg, early := s.screen(packet)
	if msg == nil {
		return early
	}
	q := &query{
		packet:   packet,
		msg:      msg,
		on:       s.ground(),
		protocol: protocol,
		name:     dns.CanonicalName(msg.Question[0].Name),
		qtype:    msg.Question[0].Qtype,
	}
	q.client = s.whoAsks(ctx)
	if ctx.Err() != nil {
		return nil
	}
	labels := labelsOf(q.client, q.qtype, protocol)
	s.metrics.request(labels)
	if q.client == nil {
		return failure(msg, dns.RcodeServerFailure)
	}
	r := resolve(s.view, s.zone.with(s.search.now()), q.client, q.name, q.qtype)
	if r.verdict == notOurs {
		return s.fromUpstream(ctx, q, labels)
	}
	return s.fromMesh(q, r, labels)
}

// screen decodes a message and returns it if it is one query with one
// question. If not, answer is what to say to it, if anything (contract 11.1).
func (s *Server) screen(packet []byte) (msg *dns.Msg, answer []byte) {
	h, ok := parseHeader(packet)
	if !ok || h.response() {
		return nil, nil // whoever answers an answer may do so forever
	}
	msg, err := unpack(packet)
	if err != nil || countOPT(msg) > 1 {
		return nil, formatError(h)
	}
	if msg.Opcode != dns.OpcodeQuery {
		s.warn("unimplemented op_code: " + opcodeName(msg.Opcode))
		return nil, failure(msg, dns.RcodeNotImplemented)
	}
	if len(msg.Question) != 1 {
		return nil, failure(msg, dns.RcodeServerFailure)
	}
	return msg, nil
}

// refuse answers a query that there is no room for.
func (s *Server) refuse(packet []byte) []byte {
	msg, early := s.screen(packet)
	if msg == nil {
		return early
	}
	return failure(msg, dns.RcodeServerFailure)
}

func opcodeName(opcode int) string {
	if name, ok := dns.OpcodeToString[opcode]; ok {
		return name
	}
	return fmt.Sprint(opcode)
}

func (s *Server) whoAsks(ctx context.Context) *mesh.Workload {
	ctx, cancel := context.WithTimeout(ctx, clientWait)
	defer cancel()
	client, err := s.client(ctx)
	if err != nil {
		s.log.Debug("the workload of the pod is unknown", slog.Any("error", err))
		return nil
	}
	return client
}

// failure is an answer that only says why there is none: AA=0, RA=0, no OPT,
// the question echoed (contract 11.6).
func failure(q *dns.Msg, rcode int) []byte {
	return pack(replyTo(q, rcode), q, false, true)
}

// fromMesh writes an answer of our own authority.
func (s *Server) fromMesh(q *query, r resolution, labels labelSet) []byte {
	m := replyTo(q.msg, dns.RcodeSuccess)
	m.Authoritative, m.RecursionAvailable = true, true
	owner := q.name
	if r.target != "" {
		m.Answer = append(m.Answer, &dns.CNAME{
			Hdr:    dns.RR_Header{Name: owner, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: localTTL},
			Target: r.target,
		})
		owner = r.target
	}
	s.record(q, r.verdict.String(), len(m.Answer)) // counted before the addresses (contract 11.8)
	s.shuffle(r.addrs)
	m.Answer = append(m.Answer, addressRecords(owner, r.addrs)...)
	s.keepFor(q, m, false, &kept{addrs: r.addrs, count: s.metrics.answered(labels)})
	return s.send(q, m)
}

// fromUpstream hands on what upstream says.
func (s *Server) fromUpstream(ctx context.Context, q *query, labels labelSet) []byte {
	start := time.Now()
	got, err := s.forward.ask(ctx, dns.Question{
		Name: q.name, Qtype: q.qtype, Qclass: q.msg.Question[0].Qclass,
	})
	if ctx.Err() != nil {
		return nil
	}
	s.metrics.forwarded(labels, time.Since(start), err)
	if errors.Is(err, ErrBusy) {
		s.metrics.drop(dropUpstream)
	}
	if err != nil {
		s.record(q, fmt.Sprintf("forwarding failed (%v)", err), 0)
		m := replyTo(q.msg, rcodeOf(err))
		s.keepForwarded(q, m, got, labels)
		return pack(m, q.msg, false, true)
	}
	s.record(q, notOurs.String(), len(got.msg.Answer))
	m := replyTo(q.msg, dns.RcodeSuccess)
	m.RecursionAvailable = true
	m.Answer, m.Extra = got.msg.Answer, got.msg.Extra
	s.keepForwarded(q, m, got, labels)
	return s.send(q, m)
}

// rcodeOf is the code that tells a client of an error: upstream's own where
// it said that there is nothing, SERVFAIL for all else (contract 11.7).
func rcodeOf(err error) int {
	if none := (*NoRecordsError)(nil); errors.As(err, &none) {
		if none.NXDomain {
			return dns.RcodeNameError
		}
		return dns.RcodeSuccess
	}
	return dns.RcodeServerFailure
}

func (s *Server) send(q *query, m *dns.Msg) []byte {
	if out := pack(m, q.msg, q.protocol == "udp", false); out != nil {
		return out
	}
	return failure(q.msg, dns.RcodeServerFailure)
}

// record writes the access line (contract 11.8).
func (s *Server) record(q *query, result string, endpoints int) {
	if !s.access.Enabled(s.ctx, slog.LevelDebug) {
		return
	}
	s.access.LogAttrs(s.ctx, slog.LevelDebug, "",
		slog.String("src.workload", q.client.Name),
		slog.String("src.namespace", q.client.Namespace),
		slog.String("query", dns.Type(q.qtype).String()),
		slog.String("domain", q.name),
		slog.String("result", result),
		slog.Int("endpoints", endpoints))
}
