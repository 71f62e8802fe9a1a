// SPDX-License-Identifier: Apache-2.0

package socks

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
)

// A peer says in, and keeps what it is told.
type peer struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (p *peer) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p *peer) Write(b []byte) (int, error) { return p.out.Write(b) }

func resolver(_ context.Context, name string) (netip.Addr, error) {
	if name == "web.default" {
		return netip.MustParseAddr("10.1.2.3"), nil
	}
	return netip.Addr{}, errors.New("no such name")
}

func say(t testing.TB, in string, resolve Resolver) (netip.AddrPort, string, int, error) {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(in, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{in: bytes.NewReader(b)}
	dst, err := Negotiate(t.Context(), p, resolve)
	return dst, hex.EncodeToString(p.out.Bytes()), p.in.Len(), err
}

const (
	yes      = "05000001000000000000"
	ioFault  = "05010001000000000000"
	nobody   = "05040001000000000000"
	refusal  = "05070001000000000000"
	greeted  = "0500"
	nameHex  = "7765622e64656661756c74" // web.default
	otherHex = "6f74686572"             // other
)

func TestNegotiations(t *testing.T) {
	for _, tc := range []struct {
		name, in, dst, out, err string
	}{
		{"IPv4", "05 01 00 05 01 00 01 0a000001 0050", "10.0.0.1:80", greeted + yes, ""},
		{"no authentication among others", "05 03 02 00 01 05 01 ff 01 0a000001 0050", "10.0.0.1:80", greeted + yes, ""},
		{"IPv6", "05 01 00 05 01 00 04 fd000000000000000000000000000001 01bb", "[fd00::1]:443", greeted + yes, ""},
		{"a mapped address is IPv4", "05 01 00 05 01 00 04 00000000000000000000ffff0a000001 01bb", "10.0.0.1:443", greeted + yes, ""},
		{"a name", "05 01 00 05 01 00 03 0b " + nameHex + " 0050", "10.1.2.3:80", greeted + yes, ""},
		{"a name that nobody has", "05 01 00 05 01 00 03 05 " + otherHex + " 0050", "", greeted + nobody, "HostUnreachable: other: no such name"},
		{"an empty name", "05 01 00 05 01 00 03 00 0050", "", greeted + refusal, "CommandNotSupported: the name is empty"},
		{"version 4", "04 01 00", "", refusal, "CommandNotSupported: version 4 is not 5"},
		{"no methods", "05 00", "", refusal, "CommandNotSupported: no authentication method offered"},
		{"passwords only", "05 01 02", "", refusal, "CommandNotSupported: only authentication is offered, methods [2]"},
		{"version in the request", "05 01 00 04 01 00 01", "", greeted + refusal, "CommandNotSupported: version 4 is not 5"},
		{"BIND", "05 01 00 05 02 00 01 0a000001 0050", "", greeted + refusal, "CommandNotSupported: command 2 is not CONNECT"},
		{"an address type of the future", "05 01 00 05 01 00 05", "", greeted + refusal, "CommandNotSupported: address type 5"},
	} {
		dst, out, _, err := say(t, tc.in, resolver)
		if out != tc.out {
			t.Errorf("%s: answered %s, want %s", tc.name, out, tc.out)
		}
		switch {
		case tc.err != "" && (err == nil || err.Error() != tc.err):
			t.Errorf("%s: %v, want %q", tc.name, err, tc.err)
		case tc.err == "" && (err != nil || dst.String() != tc.dst):
			t.Errorf("%s: %v, %v, want %s", tc.name, dst, err, tc.dst)
		}
	}
}

func TestWithoutDNSNamesAreRefused(t *testing.T) {
	_, out, _, err := say(t, "05 01 00 05 01 00 03 0b "+nameHex+" 0050", nil)
	if err == nil || out != greeted+refusal {
		t.Errorf("answered %s, %v", out, err)
	}
}

func TestReadsNothingOfWhatFollows(t *testing.T) {
	_, _, left, err := say(t, "05 01 00 05 01 00 01 0a000001 0050 474554", nil)
	if err != nil || left != 3 {
		t.Errorf("%d bytes are left, %v, want 3", left, err)
	}
}

func TestEveryProperPrefixIsAnIOError(t *testing.T) {
	for _, full := range []string{
		"0503020001 05010001 0a000001 0050",
		"050100 05010004 fd000000000000000000000000000001 01bb",
		"050100 05010003 0b" + nameHex + "0050",
	} {
		full = strings.ReplaceAll(full, " ", "")
		for n := 0; n < len(full); n += 2 {
			_, out, _, err := say(t, full[:n], resolver)
			if err == nil || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || !strings.HasSuffix(out, ioFault) {
				t.Errorf("%s: answered %s, %v", full[:n], out, err)
			}
		}
	}
}

func FuzzNegotiate(f *testing.F) {
	for _, seed := range []string{"050100050100010a0000010050", "050100050100030b" + nameHex + "0050", "0500", "04"} {
		b, _ := hex.DecodeString(seed)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		p := &peer{in: bytes.NewReader(in)}
		dst, err := Negotiate(t.Context(), p, resolver)
		out := p.out.Bytes()
		if len(out) < 10 || out[len(out)-10] != version {
			t.Fatalf("answered %x", out)
		}
		if code := out[len(out)-9]; (err == nil) != (code == succeeded) || (err == nil) != dst.IsValid() {
			t.Fatalf("%v, %v, answered %x", dst, err, out)
		}
	})
}
