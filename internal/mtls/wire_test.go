// SPDX-License-Identifier: Apache-2.0

package mtls_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
)

// What of RFC 8446 the tests of raw bytes need.
const (
	recordAlert     = 21 // B.1
	recordHandshake = 22

	typeClientHello = 1 // B.3
	typeServerHello = 2

	extServerName          = 0 // 4.2
	extSupportedGroups     = 10
	extSignatureAlgorithms = 13
	extALPN                = 16
	extPreSharedKey        = 41
	extEarlyData           = 42
	extSupportedVersions   = 43
	extPSKModes            = 45
	extKeyShare            = 51
	extSessionTicket       = 35 // RFC 5077

	alertHandshakeFailure      = 40 // B.2
	alertProtocolVersion       = 70
	alertNoApplicationProtocol = 120

	suiteAES128   = 0x1301 // B.4
	suiteAES256   = 0x1302
	suiteChaCha20 = 0x1303

	groupP256        = 0x0017 // 4.2.7
	groupP384        = 0x0018
	groupX25519      = 0x001d
	groupX25519MLKEM = 0x11ec // draft-ietf-tls-ecdhe-mlkem
)

// A hello is what a test reads from, or puts into, a ClientHello.
type hello struct {
	version    uint16 // the legacy field
	suites     []uint16
	versions   []uint16 // supported_versions
	groups     []uint16
	shares     []share
	alpn       []string
	signatures []uint16
	extensions []uint16 // which were present, in order
}

type share struct {
	group uint16
	data  []byte
}

func (s share) String() string { return fmt.Sprintf("%04x", s.group) }

// tls13 is a hello that a server of ours can accept, with a P-256 share.
func tls13(t *testing.T, suites ...uint16) *hello {
	t.Helper()
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &hello{
		version:    0x0303,
		suites:     suites,
		versions:   []uint16{0x0304},
		groups:     []uint16{groupP256},
		shares:     []share{{groupP256, key.PublicKey().Bytes()}},
		alpn:       []string{"h2"},
		signatures: []uint16{0x0403, 0x0804},
	}
}

// bytes is the hello as one record.
func (h *hello) bytes() []byte {
	var ext []byte
	if h.versions != nil {
		ext = extension(ext, extSupportedVersions, vector(1, list(h.versions)))
	}
	if h.shares != nil {
		var all []byte
		for _, s := range h.shares {
			all = append(binary.BigEndian.AppendUint16(all, s.group), vector(2, s.data)...)
		}
		ext = extension(ext, extKeyShare, vector(2, all))
	}
	ext = extension(ext, extSupportedGroups, vector(2, list(h.groups)))
	ext = extension(ext, extSignatureAlgorithms, vector(2, list(h.signatures)))
	if h.alpn != nil {
		var all []byte
		for _, p := range h.alpn {
			all = append(all, vector(1, []byte(p))...)
		}
		ext = extension(ext, extALPN, vector(2, all))
	}
	body := binary.BigEndian.AppendUint16(nil, h.version)
	body = append(body, bytes.Repeat([]byte{7}, 32)...) // random
	body = append(body, 0)                              // no session
	body = append(body, vector(2, list(h.suites))...)
	body = append(body, 1, 0) // no compression
	body = append(body, vector(2, ext)...)
	msg := append([]byte{typeClientHello}, vector(3, body)...)
	return append([]byte{recordHandshake, 3, 1}, vector(2, msg)...)
}

func list(values []uint16) []byte {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

// vector puts the length of b, as size bytes, before it.
func vector(size int, b []byte) []byte {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(b)))
	return append(n[8-size:], b...)
}

func extension(to []byte, kind uint16, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(to, kind), vector(2, b)...)
}

// A reader takes a message apart; what is too short ends the test.
type reader struct {
	t *testing.T
	b []byte
}

func (r *reader) take(n int) []byte {
	r.t.Helper()
	if n > len(r.b) {
		r.t.Fatalf("message is cut short: %d bytes wanted, %d left", n, len(r.b))
	}
	head := r.b[:n]
	r.b = r.b[n:]
	return head
}

func (r *reader) number(size int) int {
	r.t.Helper()
	n := 0
	for _, b := range r.take(size) {
		n = n<<8 | int(b)
	}
	return n
}

func (r *reader) vector(size int) *reader {
	r.t.Helper()
	return &reader{r.t, r.take(r.number(size))}
}

func (r *reader) list() []uint16 {
	r.t.Helper()
	var values []uint16
	for len(r.b) > 0 {
		values = append(values, uint16(r.number(2)))
	}
	return values
}

// readHello takes the first flight of a client apart (RFC 8446, 4.1.2).
func readHello(t *testing.T, c io.Reader) *hello {
	t.Helper()
	var msg []byte
	for want := 4; len(msg) < want; {
		kind, payload, err := readRecord(c)
		if err != nil || kind != recordHandshake {
			t.Fatalf("record of type %d: %v", kind, err)
		}
		msg = append(msg, payload...)
		want = 4 + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3])
	}
	r := &reader{t, msg}
	if kind := r.number(1); kind != typeClientHello {
		t.Fatalf("message of type %d", kind)
	}
	r = r.vector(3)
	h := &hello{version: uint16(r.number(2))}
	r.take(32)
	r.vector(1)
	h.suites = r.vector(2).list()
	r.vector(1)
	for ext := r.vector(2); len(ext.b) > 0; {
		kind := uint16(ext.number(2))
		h.extensions = append(h.extensions, kind)
		h.read(kind, ext.vector(2))
	}
	return h
}

func (h *hello) read(kind uint16, r *reader) {
	r.t.Helper()
	switch kind {
	case extSupportedVersions:
		h.versions = r.vector(1).list()
	case extSupportedGroups:
		h.groups = r.vector(2).list()
	case extSignatureAlgorithms:
		h.signatures = r.vector(2).list()
	case extKeyShare:
		for all := r.vector(2); len(all.b) > 0; {
			h.shares = append(h.shares, share{uint16(all.number(2)), all.vector(2).b})
		}
	case extALPN:
		for all := r.vector(2); len(all.b) > 0; {
			h.alpn = append(h.alpn, string(all.vector(1).b))
		}
	}
}

func readRecord(c io.Reader) (kind byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, binary.BigEndian.Uint16(head[3:]))
	_, err = io.ReadFull(c, payload)
	return head[0], payload, err
}

// An answer is what a server says first to a ClientHello.
type answer struct {
	alert  int    // the description, if it is a fatal alert
	suite  uint16 // of a ServerHello
	retry  bool   // it is a HelloRetryRequest
	group  uint16 // that it wants, or uses
	closed bool
}

// helloRetry is the random of a HelloRetryRequest (RFC 8446, 4.1.3).
func helloRetry() []byte {
	return []byte{
		0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
		0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
	}
}

// ask sends one flight and reads the first record that comes back.
func ask(t *testing.T, c net.Conn, flight []byte) answer {
	t.Helper()
	if _, err := c.Write(flight); err != nil {
		t.Fatal(err)
	}
	kind, payload, err := readRecord(c)
	if errors.Is(err, io.EOF) {
		return answer{closed: true}
	}
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{t, payload}
	switch kind {
	case recordAlert:
		if level := r.number(1); level != 2 {
			t.Errorf("alert of level %d, want fatal", level)
		}
		return answer{alert: r.number(1)}
	case recordHandshake:
		if kind := r.number(1); kind != typeServerHello {
			t.Fatalf("message of type %d", kind)
		}
		return readServerHello(r.vector(3))
	}
	t.Fatalf("record of type %d", kind)
	return answer{}
}

func readServerHello(r *reader) answer {
	r.t.Helper()
	var a answer
	r.take(2)
	a.retry = bytes.Equal(r.take(32), helloRetry())
	r.vector(1)
	a.suite = uint16(r.number(2))
	r.take(1)
	for ext := r.vector(2); len(ext.b) > 0; {
		kind, body := ext.number(2), ext.vector(2)
		if kind == extKeyShare {
			a.group = uint16(body.number(2))
		}
	}
	return a
}
