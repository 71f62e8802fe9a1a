// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"

	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// dialVerb: dial NAME place -> target
func dialVerb(r *reader) action {
	name, from := r.name("a connection"), r.place()
	r.want("->")
	to := r.bare("a target")
	return func(ctx context.Context, p *player) error {
		c, err := p.dial(ctx, from, to)
		if err != nil {
			return err
		}
		return p.keep(name, c)
	}
}

func (p *player) dial(ctx context.Context, from, to string) (tcpEnd, error) {
	text, err := p.expand(to)
	if err != nil {
		return tcpEnd{}, err
	}
	at, err := p.target(text)
	if err != nil {
		return tcpEnd{}, err
	}
	c, err := p.suite.Stage.Dial(ctx, from, "tcp", at)
	if err != nil {
		return tcpEnd{}, err
	}
	return tcpEnd{c}, nil
}

// onEnd makes a verb of what it does to a connection.
func onEnd(r *reader, do func(ctx context.Context, p *player, e endpoint) error) action {
	name := r.name("a connection")
	return func(ctx context.Context, p *player) error {
		e, err := p.end(name)
		if err != nil {
			return err
		}
		within(ctx, e)
		return do(ctx, p, e)
	}
}

// A payload is a text, or so many bytes of a pattern, or bytes in hex.
func payload(r *reader) func(*player) ([]byte, error) {
	w := r.take("what to send")
	switch {
	case w.quoted:
		return func(p *player) ([]byte, error) {
			s, err := p.expand(w.text)
			return []byte(s), err
		}
	case strings.HasPrefix(w.text, "0x"):
		b, err := hex.DecodeString(w.text[2:])
		if err != nil {
			r.fail("%w", err)
		}
		return func(*player) ([]byte, error) { return b, nil }
	}
	r.words = append([]word{w}, r.words...)
	n := r.number("number of bytes")
	r.want("bytes")
	if n <= 0 || n > 64<<20 {
		r.fail("%d bytes are none or too many", n)
		n = 1
	}
	return func(*player) ([]byte, error) { return io.ReadAll(serve.Pattern(int64(n))) }
}

// sendVerb: send NAME what
func sendVerb(r *reader) action {
	var what func(*player) ([]byte, error)
	act := onEnd(r, func(_ context.Context, p *player, e endpoint) error {
		b, err := what(p)
		if err != nil {
			return err
		}
		_, err = e.Write(b)
		return err
	})
	what = payload(r)
	return act
}

// expectVerb: expect NAME what
func expectVerb(r *reader) action {
	var what func(*player) ([]byte, error)
	act := onEnd(r, func(_ context.Context, p *player, e endpoint) error {
		want, err := what(p)
		if err != nil {
			return err
		}
		return expect(e, want)
	})
	what = payload(r)
	return act
}

func expect(e endpoint, want []byte) error {
	got, err := receive(e, len(want))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("there came %.80q", got)
	}
	return nil
}

// echoVerb: echo NAME what, which sends it and wants it back.
func echoVerb(r *reader) action {
	var what func(*player) ([]byte, error)
	act := onEnd(r, func(_ context.Context, p *player, e endpoint) error {
		b, err := what(p)
		if err != nil {
			return err
		}
		return echo(e, b)
	})
	what = payload(r)
	return act
}

func echo(e endpoint, b []byte) error {
	failed := make(chan error, 1)
	go func() { // ends when b is written, or with the connection's deadline
		_, err := e.Write(b)
		failed <- err
	}()
	return errors.Join(expect(e, b), <-failed)
}

// shutVerb: shut NAME, which says that no more will be sent.
func shutVerb(r *reader) action {
	return onEnd(r, func(_ context.Context, _ *player, e endpoint) error { return e.shut() })
}

// closeVerb: close NAME
func closeVerb(r *reader) action {
	return onEnd(r, func(_ context.Context, _ *player, e endpoint) error {
		e.close()
		return nil
	})
}

// resetVerb: reset NAME
func resetVerb(r *reader) action {
	return onEnd(r, func(_ context.Context, _ *player, e endpoint) error { return e.reset() })
}

// endsVerb: ends NAME fin|rst|any
func endsVerb(r *reader) action {
	var how, code string
	act := onEnd(r, func(_ context.Context, _ *player, e endpoint) error {
		got, err := awaitEnd(e)
		if err != nil {
			return err
		}
		return sameEnd(got, how, code)
	})
	how = r.oneOf("end", "fin", "rst", "any")
	if how == "rst" && r.more() {
		code = r.bare("a code")
	}
	return act
}

func sameEnd(got, how, code string) error {
	kind, gotCode, _ := strings.Cut(got, " ")
	if how != "any" && kind != how || code != "" && gotCode != code {
		return fmt.Errorf("it ended with %s", got)
	}
	return nil
}

// peerVerb: peer NAME = address, of the other side.
func peerVerb(r *reader) action {
	var want string
	act := onEnd(r, func(_ context.Context, p *player, e endpoint) error {
		w, err := p.expand(want)
		if err != nil {
			return err
		}
		_, remote := e.addrs()
		if got := remote.Addr().String(); got != w {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
	r.want("=")
	want = r.bare("an address")
	return act
}

// callVerb: call place -> target, which has to echo.
func callVerb(r *reader) action {
	from := r.place()
	r.want("->")
	to := r.bare("a target")
	return func(ctx context.Context, p *player) error {
		c, err := p.dial(ctx, from, to)
		if err != nil {
			return err
		}
		defer c.close()
		within(ctx, c)
		if err := echo(c, []byte("hello")); err != nil {
			return err
		}
		if err := c.shut(); err != nil {
			return err
		}
		return wantEnd(c, "fin")
	}
}

func wantEnd(e endpoint, how string) error {
	got, err := awaitEnd(e)
	if err != nil {
		return err
	}
	return sameEnd(got, how, "")
}

// refusedVerb: refused place -> target [fin|rst|any], for who tries to talk.
func refusedVerb(r *reader) action {
	from := r.place()
	r.want("->")
	to := r.bare("a target")
	how := "any"
	if r.more() {
		how = r.oneOf("end", "fin", "rst", "any")
	}
	return func(ctx context.Context, p *player) error {
		c, err := p.dial(ctx, from, to)
		if (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)) && how != "fin" {
			return nil
		}
		if err != nil {
			return err
		}
		defer c.close()
		within(ctx, c)
		// What is refused before it has said a word may still end as it should.
		if _, err := c.Write([]byte("hello")); err != nil && c.ended(err) == "" {
			return err
		}
		return wantEnd(c, how)
	}
}

// An acceptor is a server that a scenario plays itself.
type acceptor struct {
	conns chan endpoint
	errs  chan error
	stop  func()
}

// listenVerb: listen NAME place:port
func listenVerb(r *reader) action {
	name, place, port := r.name("a server"), "", ""
	if at := r.bare("place:port"); r.err == nil {
		var ok bool
		if place, port, ok = strings.Cut(at, ":"); !ok {
			r.fail("%q is not place:port", at)
		}
	}
	return func(_ context.Context, p *player) error {
		l, err := p.suite.Stage.Listen(place, ":"+port)
		if err != nil {
			return err
		}
		p.servers[name] = p.accepts(l, func(c net.Conn) (endpoint, error) { return tcpEnd{c}, nil })
		return nil
	}
}

// accepts takes connections until the scenario ends.
func (p *player) accepts(l net.Listener, begin func(net.Conn) (endpoint, error)) *acceptor {
	const many = 64
	a := &acceptor{conns: make(chan endpoint, many), errs: make(chan error, many)}
	var loop sync.WaitGroup
	loop.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e, err := begin(c)
			switch {
			case err != nil:
				a.errs <- err
			case e != nil:
				a.conns <- e
			}
		}
	})
	var once sync.Once
	a.stop = func() {
		once.Do(func() {
			l.Close()
			loop.Wait()
			close(a.conns)
			for c := range a.conns {
				c.close()
			}
		})
	}
	p.later(a.stop)
	return a
}

// acceptVerb: accept NAME server
func acceptVerb(r *reader) action {
	name, from := r.name("a connection"), r.name("a server")
	return func(ctx context.Context, p *player) error {
		e, err := p.next(ctx, from)
		if err != nil {
			return err
		}
		return p.keep(name, e)
	}
}

func (p *player) next(ctx context.Context, server string) (endpoint, error) {
	a := p.servers[server]
	if a == nil {
		return nil, fmt.Errorf("there is no server %s", server)
	}
	select {
	case e := <-a.conns:
		return e, nil
	case err := <-a.errs:
		return nil, err
	case <-ctx.Done():
		return nil, errors.New("no connection came")
	}
}

// socksVerb: socks NAME pod "host" port -> code
func socksVerb(r *reader) action {
	name, from, host, port := r.name("a connection"), r.place(), r.text("a name"), r.number("port")
	r.want("->")
	code := r.number("code")
	return func(ctx context.Context, p *player) error {
		c, err := p.suite.Stage.Dial(ctx, from, "tcp", netip.MustParseAddrPort("127.0.0.1:15080"))
		if err != nil {
			return err
		}
		e := tcpEnd{c}
		if err := p.keep(name, e); err != nil {
			return err
		}
		within(ctx, e)
		// RFC 1928: version 5, one method, none; then CONNECT to a name.
		ask := append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(host))}, host...)
		if _, err := e.Write(append(ask, byte(port>>8), byte(port))); err != nil {
			return err
		}
		return expect(e, []byte{5, 0, 5, byte(code), 0, 1, 0, 0, 0, 0, 0, 0})
	}
}
