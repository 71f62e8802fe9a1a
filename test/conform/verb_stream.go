// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2/hpack"
)

// takeVerb: take NAME server METHOD "authority": the next request that comes.
func takeVerb(r *reader) action {
	name, server, method, authority := r.name("a stream"), r.name("a server"), r.bare("a method"), r.text("an authority")
	return func(ctx context.Context, p *player) error {
		e, err := p.next(ctx, server)
		if err != nil {
			return err
		}
		s, ok := e.(*tunnelStream)
		if !ok {
			return fmt.Errorf("%s serves no tunnels", server)
		}
		if err := p.keep(name, s); err != nil {
			return err
		}
		want, err := p.expand(authority)
		if err != nil {
			return err
		}
		gotMethod, _ := s.header(":method")
		if got, _ := s.header(":authority"); got != want || gotMethod != method {
			return fmt.Errorf("it is %s %s", gotMethod, got)
		}
		return nil
	}
}

// onStream makes a verb of what it does to a stream.
func onStream(r *reader, do func(p *player, s *tunnelStream) error) action {
	return onEnd(r, func(_ context.Context, p *player, e endpoint) error {
		s, ok := e.(*tunnelStream)
		if !ok {
			return fmt.Errorf("%T is no stream of a tunnel", e)
		}
		return do(p, s)
	})
}

// answerVerb: answer stream status ["name: value"...]
func answerVerb(r *reader) action {
	status := 0
	var headers []string
	act := onStream(r, func(_ *player, s *tunnelStream) error {
		fields := []hpack.HeaderField{{Name: ":status", Value: strconv.Itoa(status)}}
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			fields = append(fields, hpack.HeaderField{Name: name, Value: value})
		}
		return s.peer.writeHeaders(s.id, fields, status != 200)
	})
	status = r.number("status")
	for r.more() {
		headers = append(headers, r.text("a header"))
	}
	return act
}

// headerVerb: header stream name = "value" | absent | matches "regexp"
func headerVerb(r *reader) action {
	var name, op, want string
	act := onStream(r, func(p *player, s *tunnelStream) error {
		got, there := s.header(name)
		if op == "absent" {
			if there {
				return fmt.Errorf("it is %q", got)
			}
			return nil
		}
		value, err := p.expand(want)
		if err != nil {
			return err
		}
		if !there {
			return fmt.Errorf("it is not there: %q", s.headerNames())
		}
		if op == "length" && strconv.Itoa(len(got)) != value || op == "=" && got != value {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
	name = r.bare("a header")
	op = r.oneOf("comparison", "=", "absent", "length")
	if op != "absent" {
		want = r.take("a value").text
	}
	return act
}

// headersVerb: headers stream = "name name...", in order.
func headersVerb(r *reader) action {
	var want []string
	act := onStream(r, func(_ *player, s *tunnelStream) error {
		if got := s.headerNames(); !slices.Equal(got, want) {
			return fmt.Errorf("they are %q", got)
		}
		return nil
	})
	r.want("=")
	want = strings.Fields(r.text("names"))
	return act
}

// helloVerb: hello stream sni|alpn|versions|suites = "...": what the client of
// the stream's tunnel offered.
func helloVerb(r *reader) action {
	var what, want string
	act := onTunnel(r, func(_ *player, t *peer, _ time.Time) error {
		if t.hello == nil {
			return fmt.Errorf("this tunnel was ours to greet")
		}
		if got := helloPart(t.hello, what); got != want {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
	what = r.oneOf("part", "sni", "alpn", "versions", "suites")
	r.want("=")
	want = r.text("a value")
	return act
}

func helloPart(h *tls.ClientHelloInfo, what string) string {
	var parts []string
	switch what {
	case "sni":
		return h.ServerName
	case "alpn":
		parts = h.SupportedProtos
	case "versions":
		for _, v := range h.SupportedVersions {
			parts = append(parts, tls.VersionName(v))
		}
	case "suites":
		for _, s := range h.CipherSuites {
			if s != 0x00ff { // TLS_EMPTY_RENEGOTIATION_INFO_SCSV is no suite
				parts = append(parts, tls.CipherSuiteName(s))
			}
		}
		slices.Sort(parts) // the order is the client's, and means little
	}
	return strings.Join(parts, ",")
}
