// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
)

func record(kind byte, body ...byte) []byte {
	head := binary.BigEndian.AppendUint16([]byte{kind, 3, 3}, uint16(len(body)))
	return append(head, body...)
}

// aServerHello chooses a suite and a version.
func aServerHello(suite, version uint16) []byte {
	body := append([]byte{serverHello, 0, 0, 46, 3, 3}, make([]byte, 32)...)
	body = append(body, 0) // no session id
	body = binary.BigEndian.AppendUint16(body, suite)
	body = append(body, 0, 0, 6, 0, extensionVersions, 0, 2)
	return binary.BigEndian.AppendUint16(body, version)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestWalkTLS(t *testing.T) {
	hello := record(typeHandshake, clientHello, 0, 0, 0)
	old := join([]byte{typeHandshake, 3, 1}, hello[3:])
	answer := record(typeHandshake, aServerHello(0x1301, version13)...)
	ccs := record(typeChangeCipherSpec, 1)
	data := record(typeApplicationData, make([]byte, 100)...)
	for _, tc := range []struct {
		name    string
		stream  []byte
		kind    byte
		records int
		err     string // a part of; empty: none
	}{
		{"a client", join(old, ccs, data, data), clientHello, 4, ""},
		{"a client asked again", join(hello, ccs, hello, data), clientHello, 4, ""},
		{"a server", join(answer, ccs, data), serverHello, 3, ""},
		{"a server that asks again", join(answer, ccs, answer, data), serverHello, 4, ""},
		{"nothing", nil, clientHello, 0, "no record"},
		{"plaintext", []byte("GET / HTTP/1.1\r\n"), clientHello, 0, "no TLS record"},
		{"plaintext later", join(hello, ccs, data, []byte("PRI * HTTP/2.0")), clientHello, 3, "no TLS record"},
		{"the old version later", join(hello, old), clientHello, 1, "no TLS record"},
		{"the other side's hello", join(answer), clientHello, 0, "type 22"},
		{"data first", join(data), clientHello, 0, "type 23"},
		{"a handshake in the clear later", join(hello, data, hello), clientHello, 2, "type 22"},
		{"an alert in the clear", join(hello, record(21, 2, 40)), clientHello, 1, "type 21"},
		{"an empty record", join(hello, record(typeApplicationData)), clientHello, 1, "no TLS record"},
		{"too long a record", join(hello, []byte{typeApplicationData, 3, 3, 0xff, 0xff}), clientHello, 1, "no TLS record"},
		{"TLS 1.2", join(record(typeHandshake, aServerHello(0x1301, 0x0303)...)), serverHello, 0, "version"},
		{"another suite", join(record(typeHandshake, aServerHello(0x1303, version13)...)), serverHello, 0, "suite"},
		{"a hello without versions", join(record(typeHandshake, aServerHello(0x1301, version13)[:41]...)), serverHello, 0, "ServerHello"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := walkTLS(tc.stream, tc.kind, true)
			if n != tc.records || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%d records, %v; want %d, %q", n, err, tc.records, tc.err)
			}
		})
	}
}

// TestWalkTLSCutShort walks every proper prefix of a stream: fine while the
// connection is open, an error when it has ended, except between records.
func TestWalkTLSCutShort(t *testing.T) {
	parts := [][]byte{record(typeHandshake, aServerHello(0x1302, version13)...), record(typeChangeCipherSpec, 1), record(typeApplicationData, 1, 2, 3)}
	whole := join(parts...)
	borders := map[int]bool{}
	at := 0
	for _, p := range parts {
		at += len(p)
		borders[at] = true
	}
	for n := range whole {
		if _, err := walkTLS(whole[:n], serverHello, false); err != nil {
			t.Errorf("open, %d bytes: %v", n, err)
		}
		if _, err := walkTLS(whole[:n], serverHello, true); (err == nil) != borders[n] {
			t.Errorf("ended, %d bytes: %v", n, err)
		}
	}
}

// TestServerHelloCutShort cuts inside the message, with the record intact.
func TestServerHelloCutShort(t *testing.T) {
	whole := aServerHello(0x1301, version13)
	for n := range whole {
		if checkServerHello(whole[:n]) == nil {
			t.Errorf("%d of %d bytes pass", n, len(whole))
		}
	}
}

// TestWalkTLSOfARealHandshake has crypto/tls on both sides.
func TestWalkTLSOfARealHandshake(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	client, server := &taped{Conn: a}, &taped{Conn: b}
	var serving sync.WaitGroup
	serving.Go(func() {
		conn := tls.Server(server, &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13,
		})
		_, _ = io.Copy(conn, conn)
		_ = server.Close()
	})
	conn := tls.Client(client, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // what it says is not the matter
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	serving.Wait()
	for name, s := range map[string]struct {
		sent  []byte
		hello byte
	}{"client": {client.sent.Bytes(), clientHello}, "server": {server.sent.Bytes(), serverHello}} {
		if n, err := walkTLS(s.sent, s.hello, true); n < 4 || err != nil {
			t.Errorf("%s: %d records, %v", name, n, err)
		}
	}
}

// taped keeps what is written.
type taped struct {
	net.Conn
	sent bytes.Buffer
}

func (c *taped) Write(b []byte) (int, error) {
	c.sent.Write(b)
	return c.Conn.Write(b)
}

func FuzzWalkTLS(f *testing.F) {
	f.Add(record(typeHandshake, aServerHello(0x1301, version13)...), byte(serverHello), true)
	f.Add(join(record(typeHandshake, clientHello), record(typeChangeCipherSpec, 1), record(typeApplicationData, 9)), byte(clientHello), false)
	f.Fuzz(func(t *testing.T, data []byte, kind byte, complete bool) {
		n, err := walkTLS(data, kind, complete)
		if n < 0 || n > len(data)/recordHeader || err == nil && n == 0 && complete {
			t.Errorf("%d records of %d bytes, %v", n, len(data), err)
		}
	})
}
