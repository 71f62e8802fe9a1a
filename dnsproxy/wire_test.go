// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// A packet is written in hexadecimal, with spaces and letters in quotes.
func packet(t testing.TB, s string) []byte {
	t.Helper()
	var out []byte
	for i, part := range strings.Split(s, "'") {
		if i%2 == 1 {
			out = append(out, part...)
			continue
		}
		b, err := hex.DecodeString(strings.ReplaceAll(part, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

const (
	asked = " 01'a' 00 0001 0001" // a. A IN
	opt   = " 00 0029 1000 00000000 0000"
)

type packetCase struct{ about, query, answer string }

// packetCases hold queries and all of their answers; an empty answer is
// silence.
func packetCases() []packetCase {
	return []packetCase{
		{"nothing", "", ""},
		{"shorter than a header", "1234 0100 0001 0000 0000 00", ""},
		{"header without its question", "1234 0100 0001 0000 0000 0000", "1234 8101 0000 0000 0000 0000"},
		{"a response", "1234 8180 0001 0000 0000 0000" + asked, ""},
		{"a response that is malformed", "1234 8180 0001 0000 0000 0000", ""},
		{"no question", "1234 0100 0000 0000 0000 0000", "1234 8102 0000 0000 0000 0000"},
		{"two questions", "1234 0100 0002 0000 0000 0000" + asked + asked, "1234 8102 0002 0000 0000 0000" + asked + " c00c 0001 0001"},
		{"name runs out", "1234 0100 0001 0000 0000 0000 3f 'a'", "1234 8101 0000 0000 0000 0000"},
		{"name without an end", "1234 0100 0001 0000 0000 0000 01'a'", "1234 8101 0000 0000 0000 0000"},
		{"question without a class", "1234 0100 0001 0000 0000 0000 01'a' 00 0001", "1234 8101 0000 0000 0000 0000"},
		{"label type 01", "1234 0100 0001 0000 0000 0000 41'a' 00 0001 0001", "1234 8101 0000 0000 0000 0000"},
		{"pointer to itself", "1234 0100 0001 0000 0000 0000 c00c 0001 0001", "1234 8101 0000 0000 0000 0000"},
		{"pointer beyond the end", "1234 0100 0001 0000 0000 0000 ffff 0001 0001", "1234 8101 0000 0000 0000 0000"},
		{"half a pointer", "1234 0100 0001 0000 0000 0000 c0", "1234 8101 0000 0000 0000 0000"},
		{"name too long", "1234 0100 0001 0000 0000 0000" + strings.Repeat("3f"+strings.Repeat("61", 63), 5) + "00 0001 0001", "1234 8101 0000 0000 0000 0000"},
		{"missing additional record", "1234 0100 0001 0000 0000 0001" + asked, "1234 8101 0000 0000 0000 0000"},
		{"record data runs out", "1234 0100 0001 0000 0000 0001" + asked + " 00 0029 1000 00000000 0005 00", "1234 8101 0000 0000 0000 0000"},
		{"A record of three bytes", "1234 0100 0001 0001 0000 0000" + asked + " 00 0001 0001 00000000 0003 010203", "1234 8101 0000 0000 0000 0000"},
		{"two OPT records", "1234 0100 0001 0000 0000 0002" + asked + opt + opt, "1234 8101 0000 0000 0000 0000"},
		{"bits are copied into a format error", "1234 7fff 0001 0000 0000 0000", "1234 f911 0000 0000 0000 0000"},
		{"opcode STATUS", "1234 1100 0001 0000 0000 0000" + asked, "1234 9104 0001 0000 0000 0000" + asked},
		{"opcode NOTIFY", "1234 2000 0001 0000 0000 0000" + asked, "1234 a004 0001 0000 0000 0000" + asked},
		{"opcode UPDATE with OPT", "1234 2800 0001 0000 0000 0001" + asked + opt, "1234 a804 0001 0000 0000 0000" + asked},
		{"opcode 15", "1234 7800 0000 0000 0000 0000", "1234 f804 0000 0000 0000 0000"},
		{"good", "1234 0100 0001 0000 0000 0000" + asked, "1234 8580 0001 0001 0000 0000" + asked + " c00c 0001 0001 0000001e 0004 01010101"},
		{"good, with bytes after it", "1234 0100 0001 0000 0000 0000" + asked + " ffff", "1234 8580 0001 0001 0000 0000" + asked + " c00c 0001 0001 0000001e 0004 01010101"},
		{"good, with OPT", "1234 0100 0001 0000 0000 0001" + asked + opt, "1234 8580 0001 0001 0000 0001" + asked + " c00c 0001 0001 0000001e 0004 01010101" + opt},
		{"good, class CHAOS", "1234 0100 0001 0000 0000 0000 01'a' 00 0001 0003", "1234 8580 0001 0001 0000 0000 01'a' 00 0001 0003 c00c 0001 0001 0000001e 0004 01010101"},
	}
}

func TestPackets(t *testing.T) {
	leak.Check(t)
	r := start(t, Config{View: oneName().View()})
	for _, protocol := range []string{"udp", "tcp"} {
		for _, c := range packetCases() {
			t.Run(protocol+"/"+c.about, func(t *testing.T) {
				r.t = t
				got, want := r.raw(protocol, packet(t, c.query)), packet(t, c.answer)
				if !bytes.Equal(got, want) {
					t.Errorf("\n got %x\nwant %x", got, want)
				}
			})
		}
	}
}

func TestEveryPrefixOfAQueryIsDroppedOrAFormatError(t *testing.T) {
	s := New(Config{View: oneName().View(), Client: knownClient, Dial: dial})
	defer s.Close()
	whole := packet(t, "1234 0100 0001 0000 0000 0001"+asked+opt)
	for n := range whole {
		var want []byte
		if n >= headerLen {
			want = packet(t, "1234 8101 0000 0000 0000 0000")
		}
		if got := s.handle(s.ctx, whole[:n:n], "udp"); !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %x", n, got)
		}
	}
}

func TestLabelTypesAreKnownToTheWalk(t *testing.T) {
	for s, want := range map[string]int{
		"00": 1, "01'a' 00": 3, "c00c": 2, "01'a' c00c": 4,
		"": -1, "01": -1, "01'a'": -1, "c0": -1, "40 00": -1, "80 00": -1,
	} {
		if got := skipName(packet(t, s), 0); got != want {
			t.Errorf("%s: %d", s, got)
		}
	}
}

func FuzzHandle(f *testing.F) {
	for _, c := range packetCases() {
		f.Add(packet(f, c.query))
	}
	s := New(Config{View: oneName().View(), Client: knownClient, Dial: dial})
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, query []byte) {
		for _, protocol := range []string{"udp", "tcp"} {
			answer := s.handle(s.ctx, query, protocol)
			if answer == nil {
				if len(query) >= headerLen && query[2]&0x80 == 0 {
					t.Errorf("%s: no answer to %x", protocol, query)
				}
				continue
			}
			checkAnswer(t, protocol, query, answer)
		}
	})
}

// checkAnswer holds an answer to what is true of all of them.
func checkAnswer(t *testing.T, protocol string, query, answer []byte) {
	t.Helper()
	m, err := unpack(answer)
	if err != nil {
		t.Fatalf("%s: %x answered by %x: %v", protocol, query, answer, err)
	}
	if !bytes.Equal(answer[:2], query[:2]) || !m.Response {
		t.Errorf("%s: %x answered by %x", protocol, query, answer)
	}
	if m.Rcode == dns.RcodeFormatError {
		if len(answer) != headerLen {
			t.Errorf("%s: %x answered by %x", protocol, query, answer)
		}
		return
	}
	asked := new(dns.Msg)
	if err := asked.Unpack(query); err != nil {
		t.Fatalf("%s: %x was taken: %v", protocol, query, err)
	}
	if len(asked.Question) != len(m.Question) {
		t.Fatalf("%s: %x answered by %x", protocol, query, answer)
	}
	for i := range asked.Question {
		if asked.Question[i] != m.Question[i] {
			t.Errorf("%s: %v echoed as %v", protocol, asked.Question[i], m.Question[i])
		}
	}
	if len(m.Question) != 1 {
		return
	}
	end := skipName(query, headerLen)
	if compressed := bytes.ContainsFunc(query[headerLen:end], func(r rune) bool { return r >= 0xc0 }); !compressed && !bytes.Equal(query[headerLen:end+4], answer[headerLen:end+4]) {
		t.Errorf("%s: question of %x echoed as %x", protocol, query, answer)
	}
}

// TestRefusesARecordWithoutItsFields has a record of each kind that the
// library reads, and would write as something else or as nothing.
func TestRefusesARecordWithoutItsFields(t *testing.T) {
	inq := &inquiry{id: 0x1234, question: askFor("a.")}
	for name, record := range map[string]string{
		"an SOA without data":            " c00c 0006 0001 0000003c 0000",
		"an A without data":              " c00c 0001 0001 0000003c 0000",
		"a CNAME without data":           " c00c 0005 0001 0000003c 0000",
		"an SOA that ends after a name":  " c00c 0006 0001 0000003c 0002 c00c",
		"an A of three bytes":            " c00c 0001 0001 0000003c 0003 010101",
		"an SOA with a field of 3 bytes": " c00c 0006 0001 0000003c 0007 c00c c00c 000000",
	} {
		m := inq.accept(packet(t, "1234 8180 0001 0001 0000 0000"+asked+record), false)
		if m == nil {
			continue
		}
		if a, err := keep(inq.question, m, time.Now()); err == nil {
			t.Errorf("%s was kept as %x", name, a.packed)
		}
	}
	for name, record := range map[string]string{
		"an unknown type without data": " c00c ff42 0001 0000003c 0000",
		"a NULL without data":          " c00c 000a 0001 0000003c 0000",
	} {
		m := inq.accept(packet(t, "1234 8180 0001 0001 0000 0000"+asked+record), false)
		if m == nil {
			t.Errorf("%s was refused", name)
			continue
		}
		if _, err := keep(inq.question, m, time.Now()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzAccept(f *testing.F) {
	inq := &inquiry{id: 0x1234, question: askFor("a.")}
	f.Add(packet(f, "1234 8180 0001 0001 0000 0000"+asked+" c00c 0001 0001 0000001e 0004 01010101"), false)
	f.Add(packet(f, "1234 8380 0001 0001 0000 0000"+asked+" c00c 0001"), false)
	f.Add(packet(f, "1234 8183 0001 0000 0001 0001"+asked+" c00c 0006 0001 0000003c 0016 c00c c00c 00000001 00000001 00000001 00000001 0000001e"+opt), true)
	f.Add(packet(f, "1234 8185 0000 0000 0000 0000"), false)
	f.Fuzz(func(t *testing.T, answer []byte, cut bool) {
		m := inq.accept(answer, cut)
		if m == nil {
			return
		}
		if m.Id != inq.id || !m.Response || m.Truncated && len(m.Answer) > 0 {
			t.Errorf("%x was taken for %v", answer, m)
		}
		if len(m.Question) != 1 && m.Rcode == dns.RcodeSuccess {
			t.Errorf("%x was taken without its question", answer)
		}
		a, err := keep(inq.question, m, time.Now())
		if err != nil {
			return // records that can be read, but not written
		}
		if _, err := a.message(0); err != nil {
			t.Errorf("%x was kept as %x: %v", answer, a.packed, err)
		}
	})
}
