// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
)

// A Session is a connection after its handshake.
type Session struct {
	TLS tls.ConnectionState
	In  *Receiver // what the peer sends
	Out *Half     // what we send
	// Unread is what was read from the connection beyond the handshake: the
	// beginning of what In is to open.
	Unread []byte
	// Std is set, and In, Out and Unread are not, if the peers agreed on TLS
	// 1.2, which this package does not speak: crypto/tls carries on, and has
	// all that was read.
	Std *tls.Conn
}

// Wipe forgets the secrets of both directions.
func (s *Session) Wipe() {
	if s.In != nil {
		s.In.Wipe()
		s.Out.Wipe()
	}
}

// Client does the handshake of the side that opened nc. See [Server].
func Client(ctx context.Context, nc net.Conn, cfg *tls.Config) (*Session, error) {
	return shake(ctx, nc, cfg, true)
}

// Server does the handshake of the side that accepted nc, with cfg, of which it
// changes a copy: no session tickets, and the secrets come to us. It returns
// crypto/tls's error, or the end of ctx; nc stays the caller's, who closes it,
// but the end of ctx closes it too.
//
// Nothing of the peer's is lost, and nothing after the handshake is touched:
// sequence numbers of both directions begin at 0. The peer has finished the
// handshake when a server's returns; a client's does not wait for the server's
// opinion of its certificate, which comes as an alert.
func Server(ctx context.Context, nc net.Conn, cfg *tls.Config) (*Session, error) {
	return shake(ctx, nc, cfg, false)
}

func shake(ctx context.Context, nc net.Conn, cfg *tls.Config, client bool) (*Session, error) {
	var log keyLog
	defer log.wipe()
	exact := &oneRecord{Conn: nc}
	side := tls.Server
	if client {
		side = tls.Client
	}
	tc := side(exact, log.into(cfg, client))
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	s := &Session{TLS: tc.ConnectionState()}
	if s.TLS.Version != tls.VersionTLS13 {
		s.Std, exact.open = tc, true
		return s, nil
	}
	// crypto/tls takes whole records only; if it took none too many, ours begin
	// where it stopped.
	unread, err := exact.rest()
	if err != nil {
		return nil, err
	}
	s.Unread = unread
	in, out := &log.client, &log.server
	if client {
		in, out = out, in
	}
	if err := s.arm(in, out, client); err != nil {
		return nil, err
	}
	return s, nil
}

// arm makes the two directions from the secrets that were logged.
func (s *Session) arm(in, out *secret, client bool) error {
	_, n, _, err := suite(s.TLS.CipherSuite)
	if err != nil {
		return err
	}
	if in.n != n || out.n != n {
		return fmt.Errorf("the handshake yielded secrets of %d and %d bytes", in.n, out.n)
	}
	r, err := NewReceiver(ReceiverState{State: State{Suite: s.TLS.CipherSuite, Secret: in.b}, Client: client})
	if err != nil {
		return err
	}
	h, err := NewHalf(State{Suite: s.TLS.CipherSuite, Secret: out.b})
	if err != nil {
		return err
	}
	s.In, s.Out = &r, &h
	return nil
}

// A secret is n bytes of b.
type secret struct {
	b [MaxSecret]byte
	n int
}

// A keyLog is the io.Writer through which crypto/tls gives a connection's
// secrets away. It keeps two and writes none.
type keyLog struct{ client, server secret }

// into returns a copy of cfg that tells k, also if cfg chooses another
// configuration for each client.
func (k *keyLog) into(cfg *tls.Config, client bool) *tls.Config {
	c := cfg.Clone()
	c.KeyLogWriter = k
	if client {
		return c
	}
	c.SessionTicketsDisabled = true // a ticket would be a record of crypto/tls's under our keys
	if choose := c.GetConfigForClient; choose != nil {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			other, err := choose(hello)
			if err != nil || other == nil {
				return nil, err
			}
			other = other.Clone()
			other.KeyLogWriter, other.SessionTicketsDisabled = k, true
			return other, nil
		}
	}
	return c
}

// Write takes one line: a label, the client's random, and the secret, in
// hexadecimal. An io.Writer must not touch what it is given; but this line was
// made for this call and holds a secret, so it is cleared.
func (k *keyLog) Write(line []byte) (int, error) {
	defer clear(line)
	var keep *secret
	label, rest, _ := bytes.Cut(line, []byte(" "))
	switch string(label) {
	case "CLIENT_TRAFFIC_SECRET_0":
		keep = &k.client
	case "SERVER_TRAFFIC_SECRET_0":
		keep = &k.server
	default:
		return len(line), nil
	}
	_, digits, _ := bytes.Cut(bytes.TrimSuffix(rest, []byte("\n")), []byte(" "))
	if hex.DecodedLen(len(digits)) > len(keep.b) {
		return 0, errors.New("a secret is longer than any suite's")
	}
	n, err := hex.Decode(keep.b[:], digits)
	if err != nil {
		return 0, errors.New("a secret is not hexadecimal") // hex's own error would quote it
	}
	keep.n = n
	return len(line), nil
}

func (k *keyLog) wipe() { *k = keyLog{} }

// readAhead is what a handshake reads at once: a flight with a chain of usual
// length, so that most take one read.
const readAhead = 4 << 10

// A oneRecord is a connection that reads what there is, and hands out one
// record at a time, so that whoever reads from it never has anything beyond the
// record that was asked for.
type oneRecord struct {
	net.Conn
	buf  []byte // made at the first read
	r, w int    // buf[r:w] was read and not handed out
	left int    // bytes of the current record that were not handed out
	open bool   // records are of no interest any more
}

// Read hands out the current record, or the beginning of it.
func (c *oneRecord) Read(p []byte) (int, error) {
	switch {
	case c.open && c.r == c.w:
		return c.Conn.Read(p)
	case c.open:
		n := copy(p, c.buf[c.r:c.w])
		c.r += n
		return n, nil
	case c.left == 0:
		if err := c.begin(); err != nil {
			return 0, err
		}
	case c.r == c.w:
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p[:min(len(p), c.left)], c.buf[c.r:c.w])
	c.r, c.left = c.r+n, c.left-n
	return n, nil
}

// begin reads until there is a header. One that is cut off is handed out for
// what it is: its reader shall see that the end is no clean one.
func (c *oneRecord) begin() error {
	for c.w-c.r < HeaderLen {
		err := c.fill()
		if errors.Is(err, io.EOF) && c.w > c.r {
			c.left = c.w - c.r
			return nil
		}
		if err != nil {
			return err
		}
	}
	c.left = HeaderLen + int(binary.BigEndian.Uint16(c.buf[c.r+3:]))
	return nil
}

// fill reads once, behind what there is.
func (c *oneRecord) fill() error {
	if c.buf == nil {
		c.buf = make([]byte, readAhead)
	}
	c.w = copy(c.buf, c.buf[c.r:c.w])
	c.r = 0
	n, err := c.Conn.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil // an error comes again
	}
	return err
}

// rest is what was read and not handed out, which begins with a record.
func (c *oneRecord) rest() ([]byte, error) {
	if c.left != 0 {
		return nil, fmt.Errorf("the handshake ended %d bytes before the end of a record", c.left)
	}
	return bytes.Clone(c.buf[c.r:c.w]), nil
}
