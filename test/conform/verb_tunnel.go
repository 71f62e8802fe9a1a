// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ztunnel-go/ztunnel/internal/ca"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// A credential says how we present ourselves in TLS.
type credential struct {
	id, authority string
	tls12, bare   bool // at most TLS 1.2; without a certificate
	alpn          string
	expired       bool
}

// readCredential: as ID [of AUTHORITY] [tls12] [alpn NAME] [expired], or anonymous
func readCredential(r *reader) credential {
	c := credential{authority: "mesh", alpn: "h2", id: "spiffe://cluster.local/ns/default/sa/anybody"}
	for r.more() && r.words[0].text != "->" {
		switch word := r.oneOf("option", "as", "of", "tls12", "anonymous", "alpn", "expired"); word {
		case "as":
			c.id = r.bare("an identity")
		case "of":
			c.authority = r.name("an authority")
		case "tls12":
			c.tls12 = true
		case "expired":
			c.expired = true
		case "anonymous":
			c.bare = true
		case "alpn":
			c.alpn = r.bare("a protocol")
		}
	}
	if _, err := identity.Parse(c.id); r.err == nil && err != nil {
		r.fail("%w", err)
	}
	return c
}

func (s *Suite) issue(ctx context.Context, c credential) (*certs.Bundle, error) {
	ttl := time.Hour
	if c.expired {
		ttl = time.Millisecond
	}
	a, err := ca.OpenEmbedded(s.caDir(c.authority), ttl)
	if err != nil {
		return nil, err
	}
	id, err := identity.Parse(c.id)
	if err != nil {
		return nil, err
	}
	b, err := a.Issue(ctx, id)
	if c.expired && err == nil {
		time.Sleep(time.Until(b.Leaf.NotAfter) + time.Second) // some count whole seconds
	}
	return b, err
}

// config is TLS as anybody would do it, with the mesh's root.
func (s *Suite) config(ctx context.Context, c credential) (*tls.Config, error) {
	own, err := s.issue(ctx, c)
	if err != nil {
		return nil, err
	}
	mesh, err := ca.OpenEmbedded(s.caDir("mesh"), 0)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(mesh.Root())
	cfg := &tls.Config{
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, NextProtos: []string{c.alpn}, MinVersion: tls.VersionTLS12,
		// Names in these certificates are URIs, which crypto/tls checks for nobody.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		},
	}
	if c.tls12 {
		cfg.MaxVersion = tls.VersionTLS12
	}
	if !c.bare {
		cfg.Certificates = []tls.Certificate{*own.TLS()}
		// Else crypto/tls keeps to itself what the other side will not trust.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own.TLS(), nil }
	}
	return cfg, nil
}

// tunnelVerb: tunnel NAME place -> target [options] [-> refused]
func tunnelVerb(r *reader) action {
	name, from := r.name("a tunnel"), r.place()
	r.want("->")
	to, cred := r.bare("a target"), readCredential(r)
	refused := r.maybe("->")
	if refused {
		r.want("refused")
	}
	return func(ctx context.Context, p *player) error {
		t, err := p.tunnel(ctx, from, to, cred)
		if err == nil {
			p.tunnels[name] = t
			p.later(t.close)
			deadline, _ := ctx.Deadline()
			t.mu.Lock()
			// A TLS 1.3 client is done before it has been judged.
			err = t.await(deadline, "SETTINGS", func() bool { return t.greeted })
			t.mu.Unlock()
		}
		var alert tls.AlertError
		switch {
		case refused && err == nil:
			return errors.New("it was taken")
		case refused && (errors.As(err, &alert) || isHangup(err)):
			return nil
		}
		return err
	}
}

// isHangup says whether a connection was ended by the other side.
func isHangup(err error) bool {
	return err != nil && (tcpEnd{}.ended(err) != "" || strings.Contains(err.Error(), "remote error: tls:"))
}

func (p *player) tunnel(ctx context.Context, from, to string, c credential) (*peer, error) {
	cfg, err := p.suite.config(ctx, c)
	if err != nil {
		return nil, err
	}
	raw, err := p.dial(ctx, from, to)
	if err != nil {
		return nil, err
	}
	within(ctx, raw)
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.close()
		return nil, err
	}
	t, err := newPeer(conn, raw, nil, nil)
	if err != nil {
		raw.close()
		return nil, err
	}
	raw.Conn.SetDeadline(time.Time{})
	return t, nil
}

// askVerb: ask NAME tunnel METHOD "authority" ["name: value"...] -> status [ended]
// or -> reset CODE
func askVerb(r *reader) action {
	name, tunnel, method, authority := r.name("a stream"), r.name("a tunnel"), r.bare("a method"), r.text("an authority")
	var headers []string
	for r.more() && !r.maybe("->") {
		headers = append(headers, r.text("a header"))
	}
	status, code, ended := "", "", false
	if r.maybe("reset") {
		code = r.bare("a code")
	} else {
		status = strconv.Itoa(r.number("status"))
		ended = r.maybe("ended")
	}
	return func(ctx context.Context, p *player) error {
		t := p.tunnels[tunnel]
		if t == nil {
			return fmt.Errorf("there is no tunnel %s", tunnel)
		}
		to, err := p.expand(authority)
		if err != nil {
			return err
		}
		s, err := t.open(method, to, headers)
		if err != nil {
			return err
		}
		within(ctx, s)
		if err := p.keep(name, s); err != nil {
			return err
		}
		return s.answered(status, code, ended)
	}
}

// open sends a request.
func (p *peer) open(method, authority string, headers []string) (*tunnelStream, error) {
	fields := []hpack.HeaderField{{Name: ":method", Value: method}}
	if authority != "" {
		fields = append(fields, hpack.HeaderField{Name: ":authority", Value: authority})
	}
	if method != "CONNECT" {
		fields = append(fields, hpack.HeaderField{Name: ":scheme", Value: "https"}, hpack.HeaderField{Name: ":path", Value: "/"})
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		fields = append(fields, hpack.HeaderField{Name: name, Value: value})
	}
	p.mu.Lock()
	s := p.newStream(p.nextID)
	p.nextID += 2
	p.mu.Unlock()
	return s, p.writeHeaders(s.id, fields, false)
}

// answered waits for the answer. A status that is not 200 may have to come
// with END_STREAM, and RST_STREAM(NO_ERROR) after it.
func (s *tunnelStream) answered(status, code string, ended bool) error {
	s.peer.mu.Lock()
	defer s.peer.mu.Unlock()
	err := s.peer.await(s.until(), "an answer", func() bool { return s.headers != nil || s.code != "" || s.lost != nil })
	if s.headers == nil && s.code != "" && s.code == code {
		return nil
	}
	if s.headers == nil {
		return fmt.Errorf("no answer: reset %q, %w", s.code, errors.Join(err, s.lost))
	}
	if got := s.headers[0]; got.Name != ":status" || got.Value != status {
		return fmt.Errorf("it answered %q", s.headers)
	}
	if !ended {
		return nil
	}
	if err := s.peer.await(s.until(), "RST_STREAM", func() bool { return s.code != "" }); err != nil {
		return err
	}
	if !s.finished || s.code != codeName(http2.ErrCodeNo) || s.in.Len() > 0 {
		return fmt.Errorf("END_STREAM %v, code %s, %d bytes of body", s.finished, s.code, s.in.Len())
	}
	return nil
}

// onTunnel makes a verb of what it does to a tunnel.
func onTunnel(r *reader, do func(p *player, t *peer, deadline time.Time) error) action {
	name := r.name("a tunnel")
	return func(ctx context.Context, p *player) error {
		t := p.tunnels[name]
		if e, ok := p.ends[name].(*tunnelStream); ok && t == nil {
			t = e.peer // that of a stream of a server
		}
		if t == nil {
			return fmt.Errorf("there is no tunnel %s", name)
		}
		deadline, _ := ctx.Deadline()
		return do(p, t, deadline)
	}
}

// settingsVerb: settings tunnel = "NAME=value ..." [window n]: what the other
// side announced, in order.
func settingsVerb(r *reader) action {
	want, window := "", 0
	act := onTunnel(r, func(_ *player, t *peer, deadline time.Time) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		if err := t.await(deadline, "SETTINGS", func() bool { return t.greeted && (window == 0 || t.window > 0) }); err != nil {
			return err
		}
		var got []string
		for _, s := range t.settings {
			got = append(got, fmt.Sprintf("%v=%d", s.ID, s.Val))
		}
		if text := strings.Join(got, " "); text != want {
			return fmt.Errorf("they are %q", text)
		}
		if window != 0 && int(t.window)+initialWindow != window {
			return fmt.Errorf("the window is %d", t.window+initialWindow)
		}
		return nil
	})
	r.want("=")
	want = r.text("settings")
	if r.maybe("window") {
		window = r.number("size of the window")
	}
	return act
}

// goawayVerb: goaway tunnel CODE
func goawayVerb(r *reader) action {
	code := ""
	act := onTunnel(r, func(_ *player, t *peer, deadline time.Time) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		if err := t.await(deadline, "GOAWAY", func() bool { return t.goaway != nil }); err != nil && t.goaway == nil {
			return err
		}
		if got := codeName(t.goaway.ErrCode); got != code {
			return fmt.Errorf("its code is %s", got)
		}
		return nil
	})
	code = r.bare("a code")
	return act
}

// certificateVerb: certificate tunnel = "uri": who the other side is.
func certificateVerb(r *reader) action {
	want := ""
	act := onTunnel(r, func(_ *player, t *peer, _ time.Time) error {
		leaf := t.conn.ConnectionState().PeerCertificates[0]
		var got []string
		for _, u := range leaf.URIs {
			got = append(got, u.String())
		}
		if !slices.Equal(got, []string{want}) {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
	r.want("=")
	want = r.text("a name")
	return act
}

// serveVerb: serve NAME place:port [options]: a server of tunnels.
func serveVerb(r *reader) action {
	name, place, port := r.name("a server"), "", ""
	if at := r.bare("place:port"); r.err == nil {
		place, port, _ = strings.Cut(at, ":")
	}
	cred := readCredential(r)
	return func(ctx context.Context, p *player) error {
		cfg, err := p.suite.config(ctx, cred)
		if err != nil {
			return err
		}
		l, err := p.suite.Stage.Listen(place, ":"+port)
		if err != nil {
			return err
		}
		const many = 64
		streams := make(chan endpoint, many)
		a := p.accepts(l, func(c net.Conn) (endpoint, error) {
			return nil, p.serveTunnel(c, cfg, func(s *tunnelStream) { streams <- s })
		})
		a.conns = streams
		p.servers[name] = a
		return nil
	}
}

// serveTunnel does the handshake of a tunnel that came, and has it read.
func (p *player) serveTunnel(c net.Conn, cfg *tls.Config, accepted func(*tunnelStream)) error {
	c.SetDeadline(time.Now().Add(p.suite.Patience))
	var hello *tls.ClientHelloInfo
	cfg = cfg.Clone()
	cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = h
		return nil, nil
	}
	conn := tls.Server(c, cfg)
	if err := conn.Handshake(); err != nil {
		c.Close()
		return nil // the scenario sees what the proxy makes of it
	}
	t, err := newPeer(conn, c, hello, accepted)
	if err != nil {
		c.Close()
		return err
	}
	c.SetDeadline(time.Time{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.served = append(p.served, t)
	return nil
}
