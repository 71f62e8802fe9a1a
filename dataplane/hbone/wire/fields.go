// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// A Request asks a peer for a connection (contract 4.5).
type Request struct {
	Authority        string  // host:port, where the connection is to go
	Baggage          string  // of the source workload; may be empty
	Forwarded        string  // for="<client>";host=<service>
	TraceParent      string  // a fresh one for each user connection
	ForwardedNetwork *string // x-forwarded-network; nil: not sent
}

// A Response is the 200 that established a stream.
type Response struct {
	Status  int
	Baggage string // of the serving workload; empty if it sent none
}

// A Field is one line of a header block.
type Field struct{ Name, Value string }

// Fields are the lines of r in the order of contract 4.5.
func (r Request) Fields() []Field {
	list := []Field{
		{":method", "CONNECT"},
		{":authority", r.Authority},
		{"baggage", r.Baggage},
		{"forwarded", r.Forwarded},
		{"traceparent", r.TraceParent},
	}
	if r.ForwardedNetwork != nil {
		list = append(list, Field{"x-forwarded-network", *r.ForwardedNetwork})
	}
	return list
}

// ResponseFields are the lines of an answer (contract 4.6).
func ResponseFields(status int, baggage *string) []Field {
	list := []Field{{":status", strconv.Itoa(status)}}
	if baggage != nil {
		list = append(list, Field{"baggage", *baggage})
	}
	return list
}

// Indexes into the static table (RFC 7541, appendix A).
const (
	indexAuthority = 1
	indexMethod    = 2
	indexStatus    = 8 // whose value there is 200
)

// AppendBlock encodes list. It never touches the dynamic table, so that a
// tunnel has no encoder state: every literal is "without indexing" (RFC 7541,
// section 6.2.2).
func AppendBlock(dst []byte, list []Field) []byte {
	for _, f := range list {
		switch {
		case f.Name == ":status" && f.Value == "200":
			dst = append(dst, 0x80|indexStatus)
			continue
		case f.Name == ":status":
			dst = append(dst, indexStatus)
		case f.Name == ":method":
			dst = append(dst, indexMethod)
		case f.Name == ":authority":
			dst = append(dst, indexAuthority)
		default:
			dst = appendString(append(dst, 0), f.Name)
		}
		dst = appendString(dst, f.Value)
	}
	return dst
}

// appendString encodes a string literal (RFC 7541, section 5.2), by the
// Huffman code where that is shorter.
func appendString(dst []byte, s string) []byte {
	if n := hpack.HuffmanEncodeLength(s); n < uint64(len(s)) {
		return hpack.AppendHuffmanString(appendLength(dst, 0x80, n), s)
	}
	return append(appendLength(dst, 0, uint64(len(s))), s...)
}

// appendLength encodes an integer with a 7-bit prefix (RFC 7541, section 5.1).
func appendLength(dst []byte, flag byte, n uint64) []byte {
	if n < 127 {
		return append(dst, flag|byte(n))
	}
	dst = append(dst, flag|127)
	for n -= 127; n >= 128; n >>= 7 {
		dst = append(dst, byte(n)|128)
	}
	return append(dst, byte(n))
}

// A Block is a header block that arrived.
type Block struct {
	Fields    []Field
	Left      int    // bytes of the list that may still come
	Oversized bool   // the list was longer than we accept; fields is cut short
	Bomb      bool   // so much longer that only malice explains it: the tunnel is to end
	Malformed string // why the block may not be used (RFC 9113, section 8.1.1)
	regular   bool   // a line that is no pseudo header was seen
}

// Add takes the next line, in the order of arrival.
func (b *Block) Add(f Field) {
	if b.Left -= len(f.Name) + len(f.Value) + lineCost; b.Left < 0 {
		b.Oversized, b.Bomb = true, b.Left < -bombSize
	}
	if b.Malformed != "" || b.Oversized {
		return
	}
	if why := b.check(f); why != "" {
		b.Malformed = why
		return
	}
	b.Fields = append(b.Fields, f)
}

// check says what is wrong with a line, given those before it.
func (b *Block) check(f Field) string {
	if !validValue(f.Value) {
		return "header value with a forbidden byte"
	}
	if strings.HasPrefix(f.Name, ":") {
		switch {
		case b.regular:
			return "pseudo header after a regular one"
		case b.Value(f.Name) != nil:
			return "pseudo header given twice"
		}
		switch f.Name {
		case ":method", ":authority", ":scheme", ":path", ":status":
			return ""
		}
		return "unknown pseudo header"
	}
	b.regular = true
	if !validName(f.Name) {
		return "header name with a forbidden byte"
	}
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return "header that belongs to HTTP/1"
	case "te":
		if f.Value != "trailers" {
			return "te other than trailers"
		}
	}
	return ""
}

// Value is the first value of name, or nil.
func (b *Block) Value(name string) *string {
	for i := range b.Fields {
		if b.Fields[i].Name == name {
			return &b.Fields[i].Value
		}
	}
	return nil
}

// Text is the first value of name, or empty.
func (b *Block) Text(name string) string {
	if v := b.Value(name); v != nil {
		return *v
	}
	return ""
}

// lineCost is what a line counts beyond its bytes (RFC 9113, section 10.5.1).
const lineCost = 32

// Request checks that b can be a request, and says why not. A CONNECT has
// neither scheme nor path; anything else has both (RFC 9113, sections 8.3.1
// and 8.5).
func (b *Block) Request() (why string) {
	method, scheme, path := b.Value(":method"), b.Value(":scheme"), b.Value(":path")
	switch {
	case b.Value(":status") != nil:
		return ":status in a request"
	case method == nil || *method == "":
		return "request without :method"
	case *method == "CONNECT" && (scheme != nil || path != nil):
		return "CONNECT with :scheme or :path"
	case *method != "CONNECT" && (scheme == nil || path == nil || *path == ""):
		return "request without :scheme or :path"
	}
	return ""
}

// Response checks that b can be an answer and returns its status.
func (b *Block) Response() (status int, why string) {
	for _, f := range b.Fields {
		if strings.HasPrefix(f.Name, ":") && f.Name != ":status" {
			return 0, f.Name + " in a response"
		}
	}
	text := b.Text(":status")
	status, err := strconv.Atoi(text)
	if err != nil || len(text) != 3 || status < 100 {
		return 0, "response without a valid :status"
	}
	if status == 101 {
		return 0, "status 101" // RFC 9113, section 8.6
	}
	return status, ""
}

// validName holds for lower-case tokens (RFC 9113, section 8.2.1).
func validName(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// validValue holds for values without control bytes other than a tab.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

const (
	// MaxContinuations bounds a header block in frames: even 64 KiB of lines
	// in frames of the smallest size needs five (CVE-2024-27316 and others).
	MaxContinuations = 32
	// BlockSlack is how much longer than its list a block may be on the wire
	// before the tunnel pays for it; up to there an oversized list costs only
	// its own stream.
	BlockSlack = 2
	// bombSize is how many bytes a list may unpack to beyond what we accept,
	// by naming lines of the dynamic table again and again, before the tunnel
	// pays for it (CVE-2016-6581): unpacking costs us more than the peer.
	bombSize = 4 << 20
)
