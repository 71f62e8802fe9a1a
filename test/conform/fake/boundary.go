// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"syscall"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// faultyPages changes answers of a server before they leave.
type faultyPages struct {
	h      http.Handler
	port   string
	change func(q pageRequest, a *httptest.ResponseRecorder)
}

// A pageRequest is what a changed answer is the answer to.
type pageRequest struct{ port, method, path, query string }

// ServeHTTP implements [http.Handler].
func (f *faultyPages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.change == nil {
		f.h.ServeHTTP(w, r)
		return
	}
	a := httptest.NewRecorder()
	f.h.ServeHTTP(a, r)
	f.change(pageRequest{f.port, r.Method, r.URL.Path, r.URL.RawQuery}, a)
	for name, values := range a.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(a.Code)
	w.Write(a.Body.Bytes())
}

// replace changes the body of an answer.
func replace(a *httptest.ResponseRecorder, old, with string) {
	a.Body = bytes.NewBuffer(bytes.ReplaceAll(a.Body.Bytes(), []byte(old), []byte(with)))
	a.Header().Del("Content-Length")
}

// faultyLines changes lines before they are printed.
type faultyLines struct {
	out    io.Writer
	rest   []byte
	change func(line string) string // empty: the line is lost
}

// Write implements [io.Writer].
func (f *faultyLines) Write(b []byte) (int, error) {
	if f.change == nil {
		return f.out.Write(b)
	}
	f.rest = append(f.rest, b...)
	for {
		line, after, ok := bytes.Cut(f.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		if changed := f.change(string(line)); changed != "" {
			if _, err := io.WriteString(f.out, changed+"\n"); err != nil {
				return 0, err
			}
		}
		f.rest = after
	}
}

// swapFields exchanges two fields of a plain line.
func swapFields(line, one, two string) string {
	words := strings.Split(line, " ")
	at := func(key string) int {
		for i, w := range words {
			if strings.HasPrefix(w, key+"=") || strings.HasSuffix(w, "\t"+key) {
				return i
			}
		}
		return -1
	}
	if i, j := at(one), at(two); i >= 0 && j >= 0 {
		words[i], words[j] = words[j], words[i]
	}
	return strings.Join(words, " ")
}

// dropField takes a field out of a plain line.
func dropField(line, key string) string {
	words := strings.Split(line, " ")
	kept := words[:0]
	for _, w := range words {
		if !strings.HasPrefix(w, key+"=") {
			kept = append(kept, w)
		}
	}
	return strings.Join(kept, " ")
}

// faultyDNS changes answers before the client has them.
type faultyDNS struct {
	net.Conn
	tcp    bool
	change func(m *dns.Msg)
	held   []byte
}

// Read implements [net.Conn].
func (f *faultyDNS) Read(b []byte) (int, error) {
	if len(f.held) > 0 {
		n := copy(b, f.held)
		f.held = f.held[n:]
		return n, nil
	}
	packet := make([]byte, 65535)
	n, err := f.Conn.Read(packet)
	if err != nil || f.tcp && n < 12 {
		return copy(b, packet[:n]), err
	}
	if f.tcp { // one write of the server's has it all
		packet, n = packet[2:], n-2
	}
	m := new(dns.Msg)
	if m.Unpack(packet[:n]) != nil {
		return copy(b, packet[:n]), nil
	}
	f.change(m)
	out, err := m.Pack()
	if err != nil {
		return 0, err
	}
	if f.tcp {
		out = append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)
	}
	n = copy(b, out)
	f.held = out[n:]
	return n, nil
}

// faulty is an application's connection on which things go wrong.
type faulty struct {
	*net.TCPConn
	fault Fault
}

// CloseWrite swallows the FIN, if that is the fault.
func (f *faulty) CloseWrite() error {
	if f.fault.noFIN {
		return nil
	}
	return f.TCPConn.CloseWrite()
}

// Read makes an end of a reset, or changes a byte, if that is the fault.
func (f *faulty) Read(b []byte) (int, error) {
	n, err := f.TCPConn.Read(b)
	if f.fault.softReset && errors.Is(err, syscall.ECONNRESET) {
		return n, io.EOF
	}
	if f.fault.hardEnd && errors.Is(err, io.EOF) {
		return n, syscall.ECONNRESET
	}
	if f.fault.corrupt && n > 0 {
		b[n-1] ^= 1
	}
	return n, err
}

// A renamer certifies others than it was asked for.
type renamer struct {
	certs.Issuer
	account string
}

// Issue implements [certs.Issuer].
func (r renamer) Issue(ctx context.Context, id identity.ID) (*certs.Bundle, error) {
	other, err := identity.New(id.TrustDomain(), id.Namespace(), r.account)
	if err != nil {
		return nil, err
	}
	return r.Issuer.Issue(ctx, other)
}

// double doubles the value of every sample of a metric.
func double(a *httptest.ResponseRecorder, name string) {
	var out bytes.Buffer
	for line := range strings.Lines(a.Body.String()) {
		if i := strings.LastIndexByte(strings.TrimSpace(line), ' '); i > 0 && strings.HasPrefix(line, name+"{") {
			if n, err := strconv.ParseUint(strings.TrimSpace(line[i:]), 10, 64); err == nil {
				line = line[:i] + " " + strconv.FormatUint(2*n, 10) + "\n"
			}
		}
		out.WriteString(line)
	}
	a.Body = &out
	a.Header().Del("Content-Length")
}
