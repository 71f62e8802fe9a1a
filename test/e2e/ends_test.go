// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// TestWhoEndedFirst holds that the access lines of both nodes tell who ended a
// connection first, how each side ended, and what the kernel knew of them,
// whoever carries the tunnels.
func TestWhoEndedFirst(t *testing.T) {
	for _, engine := range []string{"reactor", "std"} {
		t.Run(engine, func(t *testing.T) {
			w := newWorld(t, rig.Options{Env: map[string]string{
				"ACCESS_LOG_TCP_INFO": "true", "ACCESS_LOG_REASON": "true", "TLS_ENGINE": engine,
			}})
			t.Run("through a tunnel", func(t *testing.T) { w.endings(t, w.a.Host, 6000, w.p1, w.p2) })
			t.Run("plaintext", func(t *testing.T) { w.endings(t, w.stranger.Host, 6100, w.p2) })
		})
	}
}

// endings has connections to b end in all ways, each to a port of its own, and
// looks for their lines.
func (w *world) endings(t *testing.T, from *netlab.Host, first uint16, proxies ...*rig.Proxy) {
	for i, tc := range []struct {
		name, want string
		do         func(t *testing.T, client, server *net.TCPConn)
	}{
		{"the client ends", `reason="ended" closed_first="client" client.end="fin" N upstream.end="fin" N`,
			func(t *testing.T, client, server *net.TCPConn) { halfClose(t, client, server) }},
		{"the server ends", `reason="ended" closed_first="upstream" client.end="fin" N upstream.end="fin" N`,
			func(t *testing.T, client, server *net.TCPConn) { halfClose(t, server, client) }},
		{"the client resets", `reason="reset" closed_first="client" client.end="rst" N upstream.end="open" N`,
			func(t *testing.T, client, server *net.TCPConn) { reset(t, client, server) }},
		{"the server resets", `reason="reset" closed_first="upstream" client.end="open" N upstream.end="rst" N`,
			func(t *testing.T, client, server *net.TCPConn) { reset(t, server, client) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			to := w.b.Addr(first + uint16(i))
			app := listen(t, w.b.Host, port(int(to.Port())))
			var since []int
			for _, p := range proxies {
				since = append(since, p.Output.Mark())
			}
			client := w.dial(t, from, to)
			_, err := client.Write([]byte("hello"))
			must(t, err)
			server := app.accept(t)
			_, err = io.ReadFull(server, make([]byte, len("hello")))
			must(t, err)
			tc.do(t, client, server)
			for i, p := range proxies {
				w.eventually(t, func() error { return lineOf(p, since[i], to.String(), tc.want) })
			}
		})
	}
}

// lineOf looks for the one line of a connection, with numbers masked.
func lineOf(p *rig.Proxy, since int, to, want string) error {
	numbers := regexp.MustCompile(`(client|upstream)\.srtt_us=[1-9]\d* (client|upstream)\.min_rtt_us=\d+ (client|upstream)\.retransmits=\d+ (client|upstream)\.lost=\d+`)
	for _, line := range p.Output.Lines(since) {
		if !strings.Contains(line, "connection complete") || !strings.Contains(line, to+" ") {
			continue
		}
		_, got, _ := strings.Cut(strings.TrimSpace(line), "ms\" ")
		if got = numbers.ReplaceAllString(got, "N"); got != want {
			return fmt.Errorf("%s says %s, want %s", p.Node().Name(), got, want)
		}
		return nil
	}
	return errors.New("no line yet")
}
