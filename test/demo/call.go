// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// A target is where a client connects to, and who will have answered.
type target struct {
	addr    netip.AddrPort
	pod     *pod   // nil: somebody that the mesh does not know
	service string // that addr belongs to; empty: none
}

// toPod and toPod6 are a pod by an address of its own.
func toPod(p *pod, port uint16) target  { return target{addr: p.Addr(port), pod: p} }
func toPod6(p *pod, port uint16) target { return target{addr: p.Addr6(port), pod: p} }

// toServer is the server by a VIP.
func (d *demo) toServer(vip netip.Addr, port uint16) target {
	return target{addr: netip.AddrPortFrom(vip, port), pod: d.server, service: serverName}
}

// inbound is the service that the target's own proxy names: one that leads to
// the port, whatever the caller asked for (contract 12.4).
func (t target) inbound() string {
	if t.service != "" {
		return t.service
	}
	for _, port := range serverPorts() {
		if port == t.addr.Port() {
			return serverName
		}
	}
	return unknown
}

// unknown is how metrics say that something is missing.
const unknown = "unknown"

// views are how the proxies concerned report a connection: the caller's if
// the caller is captured, the target's if that is.
func views(from *pod, to target) []view {
	v := view{
		source: unknown, sourcePrincipal: unknown, destination: unknown, destinationPrincipal: unknown,
		service: unknown, security: unknown,
	}
	if from.known {
		v.source = from.name
	}
	if to.pod != nil && to.pod.known {
		v.destination, v.destinationPrincipal = to.pod.name, principal(to.pod.name)
	}
	both := from.captured && to.pod != nil && to.pod.captured
	if both {
		v.security, v.sourcePrincipal = "mutual_tls", principal(from.name)
	}
	var out []view
	if from.captured {
		source := v
		source.node, source.reporter = from.node, "source"
		if to.service != "" {
			source.service = to.service
		}
		out = append(out, source)
	}
	if to.pod != nil && to.pod.captured {
		v.node, v.reporter = to.pod.node, "destination"
		v.service = to.inbound()
		out = append(out, v)
	}
	return out
}

// A call is a TCP connection of a pod, its bytes counted as the client sees
// them.
type call struct {
	net.Conn
	enter   func(flags map[string]string, out, in int64)
	out, in atomic.Int64
}

// callWait bounds what a call of a few bytes takes.
const callWait = 10 * time.Second

// open connects. Close enters the call in the ledger.
func (d *demo) open(ctx context.Context, from *pod, to target) (*call, error) {
	conn, err := from.DialWith(ctx, &net.Dialer{Timeout: callWait}, "tcp", to.addr.String())
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(callWait))
	return &call{Conn: conn, enter: func(flags map[string]string, out, in int64) {
		d.enter(views(from, to), flags, out, in)
	}}, nil
}

func (c *call) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.out.Add(int64(n))
	return n, err
}

func (c *call) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.in.Add(int64(n))
	return n, err
}

// Close ends a call that went well.
func (c *call) Close() error { return c.closeWith(nil) }

// closeWith ends a call that proxies have ended with the flags given, by
// reporter.
func (c *call) closeWith(flags map[string]string) error {
	c.enter(flags, c.out.Load(), c.in.Load())
	return c.Conn.Close()
}

// enter books a connection that has ended, in the views of the proxies
// concerned.
func (d *demo) enter(views []view, flags map[string]string, out, in int64) {
	for _, v := range views {
		f := noFlags
		if flag, ok := flags[v.reporter]; ok {
			f = flag
		}
		d.ledger.connection(v, f, out, in)
	}
}

func (c *call) closeWrite() error {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("a %T cannot be half closed", c.Conn)
	}
	return tcp.CloseWrite()
}

// post makes an HTTP request on a connection of its own and returns what the
// server says of it.
func (d *demo) post(ctx context.Context, from *pod, to target, host string, body []byte) (*serve.Answer, error) {
	c, err := d.open(ctx, from, to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+host+"/demo", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Close = true
	if err := req.Write(c); err != nil {
		return nil, err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var a serve.Answer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // to the server's FIN
		return nil, err
	}
	if want := fmt.Sprintf("%x", sha256.Sum256(body)); resp.StatusCode != http.StatusOK || a.SHA256 != want || a.Host != host {
		return nil, fmt.Errorf("%s, and the server saw %+v, want sha256 %s", resp.Status, a, want)
	}
	return &a, nil
}

// exchange sends a payload to the echo server and reads it back.
func (c *call) exchange(payload []byte) error {
	if _, err := c.Write(payload); err != nil {
		return err
	}
	back := make([]byte, len(payload))
	if _, err := io.ReadFull(c, back); err != nil {
		return err
	}
	if !bytes.Equal(back, payload) {
		return errors.New("the echo differs")
	}
	return nil
}

// echo is a whole connection to the echo server.
func (d *demo) echo(ctx context.Context, from *pod, to target, payload []byte) error {
	c, err := d.open(ctx, from, to)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.exchange(payload); err != nil {
		return err
	}
	if err := c.closeWrite(); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, c); n > 0 || err != nil {
		return fmt.Errorf("%d bytes more than sent, %v", n, err)
	}
	return nil
}

// refused makes a call that a proxy must end before a byte has passed, with
// flags as in closeWith.
func (d *demo) refused(ctx context.Context, from *pod, to target, flags map[string]string) error {
	c, err := d.open(ctx, from, to)
	if errors.Is(err, unix.ECONNRESET) {
		// It was accepted, and reset before the client had a look at it.
		d.enter(views(from, to), flags, 0, 0)
		return nil
	}
	if err != nil {
		return fmt.Errorf("not even accepted: %w", err)
	}
	_, _ = c.Conn.Write([]byte("nobody should read this")) // uncounted: it goes nowhere
	n, err := c.Read(make([]byte, 1))
	_ = c.closeWith(flags)
	if n > 0 || isTimeout(err) {
		return fmt.Errorf("it was not refused: %d bytes, %v", n, err)
	}
	return nil
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
