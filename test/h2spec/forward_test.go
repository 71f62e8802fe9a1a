// SPDX-License-Identifier: Apache-2.0

package h2spec

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

/* h2spec has no client certificate that we would take, and no CONNECT:
 *
 *	h2spec --HTTP/2 in plaintext--> forward --the same over mutual TLS--> server
 *
 * What h2spec says goes through as it is, cut wherever it was cut, but that a
 * forwarder may make CONNECT of requests that begin with the lines that all of
 * h2spec's begin with. A block keeps what is wrong with it, if anything is: what
 * follows those lines is untouched, and they touch no dynamic table.
 */

const (
	// theirs is :method GET, :scheme http, :path / (RFC 7541, section 6.1).
	theirs = "\x82\x86\x84"
	// connect is :method CONNECT, a literal that is not indexed (section 6.2.2).
	connect = "\x02\x07CONNECT"
)

// patience bounds whatever is waited for that is sure to come.
const patience = 30 * time.Second

// forward has a forwarder before s until the end of the test, and returns its
// address.
func (s *server) forward(t *testing.T, rewrite bool) *net.TCPAddr {
	t.Helper()
	var running sync.WaitGroup
	l := listen(t)
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			running.Go(func() {
				if err := s.carry(c, rewrite); err != nil {
					t.Errorf("forward: %v", err)
				}
			})
		}
	})
	return l.Addr().(*net.TCPAddr)
}

// carry is one connection of h2spec's. Its end is h2spec's affair: the server's
// is passed on as FIN, since h2spec takes a reset for a fault.
func (s *server) carry(c *net.TCPConn, rewrite bool) error {
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	secured, err := s.dial(ctx)
	if err != nil {
		return err
	}
	var there sync.WaitGroup
	there.Go(func() {
		_, _ = io.Copy(c, secured)
		c.CloseWrite()
	})
	if rewrite {
		err = toConnect(secured, c)
	} else {
		_, err = io.Copy(secured, c)
	}
	if err != nil { // the server has gone; h2spec may be speaking yet
		_, _ = io.Copy(io.Discard, c)
	}
	secured.Close()
	there.Wait()
	return nil
}

const headLen = 9

// toConnect copies what a client says, with CONNECT for theirs. What is no
// HTTP/2 goes through as it is.
func toConnect(w io.Writer, r io.Reader) error {
	in := bufio.NewReader(r)
	preface := []byte(http2.ClientPreface)
	for i := range preface {
		b, err := in.ReadByte()
		if err != nil {
			return flush(w, preface[:i], err)
		}
		if b != preface[i] {
			if _, err := w.Write(append(preface[:i:i], b)); err != nil {
				return err
			}
			_, err := io.Copy(w, in)
			return err
		}
	}
	if _, err := w.Write(preface); err != nil {
		return err
	}
	for {
		if err := frame(w, in); err != nil {
			return flush(w, nil, err)
		}
	}
}

// flush writes what came before the end.
func flush(w io.Writer, rest []byte, err error) error {
	if _, werr := w.Write(rest); werr != nil {
		return werr
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// frame copies one frame (RFC 9113, section 4.1), as far as it comes.
func frame(w io.Writer, in io.Reader) error {
	head := make([]byte, headLen)
	if n, err := io.ReadFull(in, head); err != nil {
		return flushed(w, head[:n], err)
	}
	size := int64(head[0])<<16 | int64(head[1])<<8 | int64(head[2])
	if http2.FrameType(head[3]) != http2.FrameHeaders {
		if _, err := w.Write(head); err != nil {
			return err
		}
		_, err := io.CopyN(w, in, size)
		return err
	}
	payload := make([]byte, size)
	n, err := io.ReadFull(in, payload)
	if err != nil {
		return flushed(w, append(head, payload[:n]...), err)
	}
	_, err = w.Write(headers(head, payload))
	return err
}

func flushed(w io.Writer, b []byte, err error) error {
	if _, werr := w.Write(b); werr != nil {
		return werr
	}
	return err
}

// headers is a HEADERS frame with CONNECT for theirs.
func headers(head, payload []byte) []byte {
	at, flags := 0, http2.Flags(head[4])
	if flags.Has(http2.FlagHeadersPadded) {
		at++
	}
	if flags.Has(http2.FlagHeadersPriority) {
		at += 5
	}
	if at <= len(payload) && bytes.HasPrefix(payload[at:], []byte(theirs)) {
		rest := payload[at+len(theirs):]
		payload = append(append(payload[:at:at], connect...), rest...)
		head = append([]byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload))}, head[3:]...)
	}
	return append(head[:headLen:headLen], payload...)
}

func TestOnlyTheRequestLinesBecomeConnect(t *testing.T) {
	whole := func(flags byte, payload string) string {
		return string([]byte{0, 0, byte(len(payload)), 1, flags, 0, 0, 0, 1}) + payload
	}
	const ping = "\x00\x00\x08\x06\x00\x00\x00\x00\x00" + theirs + "12345"
	for name, tc := range map[string]struct{ said, heard string }{
		"a request":          {whole(5, theirs+"\xbe"), whole(5, connect+"\xbe")},
		"padded":             {whole(13, "\x02"+theirs+"\xbe\x00\x00"), whole(13, "\x02"+connect+"\xbe\x00\x00")},
		"with priority":      {whole(0x25, "\x00\x00\x00\x03\x10"+theirs), whole(0x25, "\x00\x00\x00\x03\x10"+connect)},
		"in another order":   {whole(5, "\x86\x82\x84"), whole(5, "\x86\x82\x84")},
		"other frames":       {ping + whole(5, theirs), ping + whole(5, connect)},
		"a piece of a frame": {whole(5, theirs+"\xbe")[:11], whole(5, theirs+"\xbe")[:11]},
		"a piece of a head":  {ping + "\x00\x00", ping + "\x00\x00"},
	} {
		var got bytes.Buffer
		if err := toConnect(&got, bytes.NewReader([]byte(http2.ClientPreface+tc.said))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if want := http2.ClientPreface + tc.heard; got.String() != want {
			t.Errorf("%s:\ngot  %q\nwant %q", name, got.String(), want)
		}
	}
	for _, other := range []string{"", "PRI * HTTP/1.1\r\n\r\nno frames", http2.ClientPreface[:7]} {
		var got bytes.Buffer
		if err := toConnect(&got, bytes.NewReader([]byte(other))); err != nil || got.String() != other {
			t.Errorf("of %q came %q, %v", other, got.String(), err)
		}
	}
}
