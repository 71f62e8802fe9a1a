// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// A syncBuilder is a strings.Builder for several writers.
type syncBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuilder) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuilder) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

const fullResolvConf = `# made by hand
; both kinds
nameserver 10.96.0.10
nameserver fd00::a   # second
nameserver ::ffff:10.0.0.1
nameserver fe80::1%eth0 ignored
nameserver [192.0.2.1]:5353
nameserver [2001:db8::1]
domain old.example
search NS1.svc.cluster.local. svc.cluster.local cluster.local
sortlist 130.155.160.0/255.255.240.0
options ndots:5 timeout:3 attempts:4 edns0 rotate
options use-vc unknown:x
frobnicate
`

func TestParseResolvConf(t *testing.T) {
	got, err := ParseResolvConf(strings.NewReader(fullResolvConf))
	if err != nil {
		t.Fatal(err)
	}
	want := ResolvConf{
		Search: []string{"ns1.svc.cluster.local", "svc.cluster.local", "cluster.local"},
		Ndots:  5, Timeout: 3 * time.Second, Attempts: 4, EDNS: true, UseTCP: true,
	}
	for _, s := range []string{
		"10.96.0.10:53", "[fd00::a]:53", "10.0.0.1:53", "[fe80::1%eth0]:53", "192.0.2.1:5353", "[2001:db8::1]:53",
	} {
		want.Nameservers = append(want.Nameservers, netip.MustParseAddrPort(s))
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestResolvConfNumbers(t *testing.T) {
	for _, c := range []struct {
		options         string
		ndots, attempts int
		timeout         time.Duration
	}{
		{"", 1, 2, 5 * time.Second},
		{"ndots:0 attempts:0 timeout:0", 0, 1, time.Second},
		{"ndots:99 attempts:99 timeout:99", 15, 5, 30 * time.Second},
		{"timeout:99999999999999999999", 1, 2, 30 * time.Second},
	} {
		got, err := ParseResolvConf(strings.NewReader("nameserver 1.1.1.1\noptions " + c.options))
		if err != nil || got.Ndots != c.ndots || got.Attempts != c.attempts || got.Timeout != c.timeout {
			t.Errorf("%s: %+v, %v", c.options, got, err)
		}
	}
}

func TestABadResolvConfIsRefusedWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"nameserver\n":                               "resolv.conf line 1: nameserver without an address",
		"\n\nnameserver dns.example":                 `resolv.conf line 3: nameserver "dns.example" is not an address`,
		"nameserver [1.1.1.1]:0":                     `resolv.conf line 1: nameserver "[1.1.1.1]:0" is not [address]:port`,
		"nameserver [::1]:65536":                     `resolv.conf line 1: nameserver "[::1]:65536" is not [address]:port`,
		"nameserver [::1":                            `resolv.conf line 1: nameserver "[::1" is not [address]:port`,
		"nameserver [::1]x":                          `resolv.conf line 1: nameserver "[::1]x" is not [address]:port`,
		"nameserver 1.1.1.1\noptions ndots:many":     `resolv.conf line 2: option "ndots:many" wants a number after its colon`,
		"nameserver 1.1.1.1\noptions timeout":        `resolv.conf line 2: option "timeout" wants a number after its colon`,
		"nameserver 1.1.1.1\noptions attempts:-1":    `resolv.conf line 2: option "attempts:-1" wants a number after its colon`,
		"a\n" + strings.Repeat("x", 70000):           "resolv.conf line 2: bufio.Scanner: token too long",
		"search a\n#nameserver 1.1.1.1\noptions x\n": "resolv.conf: " + ErrNoNameservers.Error(),
		"": "resolv.conf: " + ErrNoNameservers.Error(),
	} {
		if _, err := ParseResolvConf(strings.NewReader(text)); err == nil || err.Error() != want {
			t.Errorf("%.40q:\n got %v\nwant %s", text, err, want)
		}
	}
	if _, err := ParseResolvConf(strings.NewReader("")); !errors.Is(err, ErrNoNameservers) {
		t.Error("callers cannot tell that nameservers are missing")
	}
}

func TestEveryPrefixOfAResolvConfIsTakenOrRefused(t *testing.T) {
	for i := range fullResolvConf {
		got, err := ParseResolvConf(strings.NewReader(fullResolvConf[:i]))
		if (err == nil) != (len(got.Nameservers) > 0) {
			t.Errorf("%d bytes: %+v, %v", i, got, err)
		}
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add([]byte(fullResolvConf))
	f.Add([]byte("nameserver [::1]:53\noptions timeout:99999999999999999999 ndots:-0"))
	f.Add([]byte("search . .. a.\r\ndomain\nnameserver 1.1.1.1;x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := ParseResolvConf(strings.NewReader(string(text)))
		if err != nil {
			return
		}
		if len(got.Nameservers) == 0 || got.Attempts < 1 || got.Timeout < time.Second || got.Ndots < 0 || got.Ndots > 15 {
			t.Errorf("%+v", got)
		}
		for _, server := range got.Nameservers {
			if !server.IsValid() || server.Port() == 0 {
				t.Errorf("nameserver %v", server)
			}
		}
	})
}

func parseHosts(t testing.TB, text string) Hosts {
	t.Helper()
	h, err := ParseHosts(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestParseHosts(t *testing.T) {
	h := parseHosts(t, "127.0.0.1 localhost\n::1 localhost ip6-localhost\n\nrubbish\n1.1.1.1\n1.1.1.1 # none\n"+
		"::ffff:10.0.0.1 Mapped.Example.\nfe80::1%lo0 zoned#x\n10.0.0.2 mapped.example")
	for _, c := range []struct {
		name   string
		v4, v6 []netip.Addr
	}{
		{"localhost.", []netip.Addr{addr("127.0.0.1")}, []netip.Addr{addr("::1")}},
		{"ip6-localhost.", nil, []netip.Addr{addr("::1")}},
		{"mapped.example.", []netip.Addr{addr("10.0.0.1"), addr("10.0.0.2")}, nil},
		{"zoned.", nil, []netip.Addr{addr("fe80::1")}},
		{"none.", nil, nil},
	} {
		if v4, v6 := h.lookup(c.name, false), h.lookup(c.name, true); !reflect.DeepEqual(v4, c.v4) || !reflect.DeepEqual(v6, c.v6) {
			t.Errorf("%s: %v %v", c.name, v4, v6)
		}
	}
	if got := (Hosts{}).lookup("localhost.", false); got != nil {
		t.Errorf("no hosts knew %v", got)
	}
}

func TestEveryPrefixOfAHostsFileKnowsItsWholeLines(t *testing.T) {
	const first, second = "10.0.0.1 one uno\n", "fd00::2 two # dos\n"
	for i := len(first); i < len(first+second); i++ {
		h := parseHosts(t, (first + second)[:i])
		if got := h.lookup("uno.", false); !reflect.DeepEqual(got, []netip.Addr{addr("10.0.0.1")}) {
			t.Errorf("%d bytes: %v", i, got)
		}
		if got := h.lookup("dos.", true); got != nil {
			t.Errorf("%d bytes: a comment has the address %v", i, got)
		}
	}
	for i := range first {
		parseHosts(t, first[:i])
	}
}

func FuzzParseHosts(f *testing.F) {
	f.Add([]byte("127.0.0.1 localhost\n::1 localhost # x\nfe80::1%lo0 a.b"))
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := ParseHosts(strings.NewReader(string(text)))
		if err != nil {
			return
		}
		for name, addrs := range h.addrs {
			if !strings.HasSuffix(name, ".") || len(addrs) == 0 {
				t.Errorf("%q: %v", name, addrs)
			}
		}
	})
}
