// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"strconv"
	"strings"

	"golang.org/x/net/http2"
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

// A field is one line of a header block.
type field struct{ name, value string }

// fields are the lines of r in the order of contract 4.5.
func (r Request) fields() []field {
	list := []field{
		{":method", "CONNECT"},
		{":authority", r.Authority},
		{"baggage", r.Baggage},
		{"forwarded", r.Forwarded},
		{"traceparent", r.TraceParent},
	}
	if r.ForwardedNetwork != nil {
		list = append(list, field{"x-forwarded-network", *r.ForwardedNetwork})
	}
	return list
}

// responseFields are the lines of an answer (contract 4.6).
func responseFields(status int, baggage *string) []field {
	list := []field{{":status", strconv.Itoa(status)}}
	if baggage != nil {
		list = append(list, field{"baggage", *baggage})
	}
	return list
}

// Indexes into the static table (RFC 7541, appendix A).
const (
	indexAuthority = 1
	indexMethod    = 2
	indexStatus    = 8 // whose value there is 200
)

// appendBlock encodes list. It never touches the dynamic table, so that a
// tunnel has no encoder state: every literal is "without indexing" (RFC 7541,
// section 6.2.2).
func appendBlock(dst []byte, list []field) []byte {
	for _, f := range list {
		switch {
		case f.name == ":status" && f.value == "200":
			dst = append(dst, 0x80|indexStatus)
			continue
		case f.name == ":status":
			dst = append(dst, indexStatus)
		case f.name == ":method":
			dst = append(dst, indexMethod)
		case f.name == ":authority":
			dst = append(dst, indexAuthority)
		default:
			dst = appendString(append(dst, 0), f.name)
		}
		dst = appendString(dst, f.value)
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

// A block is a header block that arrived.
type block struct {
	fields    []field
	left      int    // bytes of the list that may still come
	oversized bool   // the list was longer than we accept; fields is cut short
	malformed string // why the block may not be used (RFC 9113, section 8.1.1)
	regular   bool   // a line that is no pseudo header was seen
}

// add takes the next line, in the order of arrival.
func (b *block) add(f hpack.HeaderField) {
	if b.malformed != "" || b.oversized {
		return
	}
	if b.left -= int(f.Size()); b.left < 0 {
		b.oversized = true
		return
	}
	if why := b.check(f); why != "" {
		b.malformed = why
		return
	}
	b.fields = append(b.fields, field{f.Name, f.Value})
}

// check says what is wrong with a line, given those before it.
func (b *block) check(f hpack.HeaderField) string {
	if !validValue(f.Value) {
		return "header value with a forbidden byte"
	}
	if f.IsPseudo() {
		switch {
		case b.regular:
			return "pseudo header after a regular one"
		case b.value(f.Name) != nil:
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

// value is the first value of name, or nil.
func (b *block) value(name string) *string {
	for i := range b.fields {
		if b.fields[i].name == name {
			return &b.fields[i].value
		}
	}
	return nil
}

func (b *block) text(name string) string {
	if v := b.value(name); v != nil {
		return *v
	}
	return ""
}

// request checks that b can be a request, and says why not. A CONNECT has
// neither scheme nor path; anything else has both (RFC 9113, sections 8.3.1
// and 8.5).
func (b *block) request() (why string) {
	method, scheme, path := b.value(":method"), b.value(":scheme"), b.value(":path")
	switch {
	case b.value(":status") != nil:
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

// response checks that b can be an answer and returns its status.
func (b *block) response() (status int, why string) {
	for _, f := range b.fields {
		if strings.HasPrefix(f.name, ":") && f.name != ":status" {
			return 0, f.name + " in a response"
		}
	}
	text := b.text(":status")
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
	// maxContinuations bounds a header block in frames: even 64 KiB of lines
	// in frames of the smallest size needs five (CVE-2024-27316 and others).
	maxContinuations = 32
	// blockSlack is how much longer than its list a block may be on the wire
	// before the tunnel pays for it; up to there an oversized list costs only
	// its own stream.
	blockSlack = 2
)

// readBlock reads the header block that begins with the frame of fh. An error
// ends the tunnel, since the decoder would lose step with the peer.
func (c *conn) readBlock(fh http2.FrameHeader) (*block, error) {
	limit := int(c.set.MaxHeaderList)
	b := &block{left: limit}
	c.dec.SetEmitFunc(b.add)
	defer c.dec.SetEmitFunc(func(hpack.HeaderField) {})
	total := 0
	for frames := 0; ; frames++ {
		total += int(fh.Length)
		if total > blockSlack*limit || frames > maxContinuations {
			return nil, complaint(EnhanceYourCalm, "header block of %d bytes in %d frames", total, frames+1)
		}
		f, err := c.readControl(fh)
		if err != nil {
			return nil, err
		}
		fragment, last := fragmentOf(f)
		if _, err := c.dec.Write(fragment); err != nil {
			return nil, complaint(Compression, "header block: %v", err)
		}
		if last {
			break
		}
		if fh, err = c.readFrameHeader(); err != nil {
			return nil, err
		}
	}
	if err := c.dec.Close(); err != nil {
		return nil, complaint(Compression, "header block: %v", err)
	}
	if total > keepFrame {
		c.resetFramer()
	}
	return b, nil
}

// fragmentOf returns the part of a header block in f, and whether it is the
// last. The Framer lets nothing but CONTINUATION follow an unfinished block.
func fragmentOf(f http2.Frame) ([]byte, bool) {
	switch f := f.(type) {
	case *http2.HeadersFrame:
		return f.HeaderBlockFragment(), f.HeadersEnded()
	case *http2.ContinuationFrame:
		return f.HeaderBlockFragment(), f.HeadersEnded()
	}
	panic("a header block continued by another frame")
}
