// SPDX-License-Identifier: Apache-2.0

// Package serve has the plain servers of a lab: HTTP, TCP that echoes, sinks
// or gives bytes, and DNS. Each runs on a listener it is given, or all as one
// process by flags. They know nothing of labs or of the proxy.
package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Answer is what the HTTP server says about a request, as JSON.
type Answer struct {
	Server string `json:"server"` // the name it was given
	Peer   string `json:"peer"`   // the client's address and port, as the server sees it
	Local  string `json:"local"`  // the address and port that was asked, as the server sees it
	Method string `json:"method"`
	Host   string `json:"host"`
	Path   string `json:"path"`
	Bytes  int64  `json:"bytes"`  // length of the request's body
	SHA256 string `json:"sha256"` // of the request's body, hex
}

// HTTP answers every request on l with an [Answer] until ctx ends. The query
// "bytes=N" asks for that many bytes of [Pattern] instead.
func HTTP(ctx context.Context, l net.Listener, name string) error {
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answer(w, r, name)
		}),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

func answer(w http.ResponseWriter, r *http.Request, name string) {
	if n, err := strconv.ParseInt(r.URL.Query().Get("bytes"), 10, 64); err == nil {
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.Copy(w, Pattern(n))
		return
	}
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(Answer{
		Server: name, Peer: r.RemoteAddr, Local: fmt.Sprint(local), Method: r.Method,
		Host: r.Host, Path: r.URL.Path, Bytes: n, SHA256: hex.EncodeToString(sum.Sum(nil)),
	})
}

// Echo gives back what it gets, and ends its side after the client's.
func Echo(ctx context.Context, l net.Listener) error {
	return each(ctx, l, func(c net.Conn) {
		if _, err := io.Copy(c, c); err == nil {
			closeWrite(c)
		}
	})
}

// Sink reads until the client ends its side and answers with one line: the
// number of bytes and their SHA-256 in hex, separated by a space.
func Sink(ctx context.Context, l net.Listener) error {
	return each(ctx, l, func(c net.Conn) {
		sum := sha256.New()
		n, err := io.Copy(sum, c)
		if err == nil {
			fmt.Fprintln(c, SinkLine(n, sum))
		}
	})
}

// SinkLine is what [Sink] answers to n bytes with that sum, without newline.
func SinkLine(n int64, sum hash.Hash) string {
	return fmt.Sprintf("%d %x", n, sum.Sum(nil))
}

// Source reads a line with a number and gives so many bytes of [Pattern], then
// ends its side.
func Source(ctx context.Context, l net.Listener) error {
	return each(ctx, l, func(c net.Conn) {
		var n int64
		if _, err := fmt.Fscanln(c, &n); err != nil {
			return
		}
		if _, err := io.Copy(c, Pattern(n)); err == nil {
			closeWrite(c)
			_, _ = io.Copy(io.Discard, c) // the client ends first: no RST overtakes data
		}
	})
}

// Pattern is n bytes that are always the same and compress badly.
func Pattern(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte([]byte("bytes that everyone can predict."))), n)
}

// PatternSum is the SHA-256 of Pattern(n), in hex.
func PatternSum(n int64) string {
	sum := sha256.New()
	_, _ = io.Copy(sum, Pattern(n))
	return hex.EncodeToString(sum.Sum(nil))
}

func closeWrite(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
}

// each serves connections of l until ctx ends, then closes them and waits for
// their goroutines.
func each(ctx context.Context, l net.Listener, serve func(net.Conn)) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		conns.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			serve(c)
		})
	}
}
