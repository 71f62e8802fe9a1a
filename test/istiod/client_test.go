// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// get asks an HTTP server what it saw.
func get(from *netlab.Host, to netip.AddrPort) (saw serve.Answer, err error) {
	const limit = 5 * time.Second
	client := from.HTTPClient()
	client.Timeout = limit
	resp, err := client.Get("http://" + to.String() + "/")
	if err != nil {
		return saw, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return saw, fmt.Errorf("status %s", resp.Status)
	}
	return saw, json.NewDecoder(resp.Body).Decode(&saw)
}

// reaches waits until a server answers that calls itself name and sees peer.
func reaches(t *testing.T, from *netlab.Host, to netip.AddrPort, name string, peer netip.Addr) {
	t.Helper()
	eventually(t, func() error { return reached(from, to, name, peer) })
}

func reached(from *netlab.Host, to netip.AddrPort, name string, peer netip.Addr) error {
	saw, err := get(from, to)
	if err != nil {
		return err
	}
	client, err := netip.ParseAddrPort(saw.Peer)
	if err == nil && (saw.Server != name || client.Addr().Unmap() != peer) {
		err = fmt.Errorf("%s answered and saw %v; want %s that sees %v", saw.Server, client, name, peer)
	}
	return err
}

// refused waits until a server cannot be reached.
func refused(t *testing.T, from *netlab.Host, to netip.AddrPort) {
	t.Helper()
	eventually(t, func() error {
		if saw, err := get(from, to); err == nil {
			return fmt.Errorf("%v answers as %s", to, saw.Server)
		}
		return nil
	})
}

// tunnelled wants a proxy to have logged a connection since a mark, with both
// identities.
func (w *world) tunnelled(t *testing.T, p *member, since int, from, to *pod, more ...string) {
	t.Helper()
	texts := append([]string{
		fmt.Sprintf(`src.identity="spiffe://%s"`, from.identity()),
		fmt.Sprintf(`dst.identity="spiffe://%s"`, to.identity()),
	}, more...)
	w.logged(t, p, since, texts...)
}

// logged waits for a line of a proxy's output since a mark.
func (w *world) logged(t *testing.T, p *member, since int, texts ...string) {
	t.Helper()
	if _, err := p.Output.Await(w.patience(), since, texts...); err != nil {
		t.Errorf("%s: %v", p.Node().Name(), err)
	}
}

// dial connects, and fails the test if that fails.
func dial(t *testing.T, from *netlab.Host, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := from.Dial(t.Context(), "tcp", to.String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// echo sends text to an echo server and wants it back.
func echo(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, []byte(text)) {
		return fmt.Errorf("the echo of %q is %q, %w", text, got, err)
	}
	return nil
}

// talk opens a connection, has one word echoed and closes it.
func talk(from *netlab.Host, to netip.AddrPort) error {
	const limit = 5 * time.Second
	c, err := from.DialWith(context.Background(), &net.Dialer{Timeout: limit}, "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	return echo(c, "hello")
}

// ends wants a live connection to be reset, and no byte on it.
func ends(t *testing.T, c net.Conn) {
	t.Helper()
	n, err := io.Copy(io.Discard, c)
	if n != 0 || !errors.Is(err, syscall.ECONNRESET) && err != nil {
		t.Errorf("the connection ended after %d bytes with %v", n, err)
	}
}

// A dump is what these tests read of /config_dump.
type dump struct {
	Workloads []struct {
		UID, Name, Namespace, Protocol string
		WorkloadIPs                    []string
	}
	Services []struct {
		Name, Namespace, Hostname string
		Endpoints                 map[string]any
	}
	Policies     []struct{ Name, Namespace string }
	Certificates []struct {
		Identity, State string
		CertChain       []struct{ SerialNumber, ValidFrom, ExpirationTime string }
	}
	WorkloadState map[string]struct {
		Connections struct{ Inbound, Outbound []any }
	}
}

const dumpPage = "15000/config_dump"

func (w *world) dump(p *rig.Proxy) (d dump, text string, err error) {
	status, text, err := p.Get(w.t.Context(), dumpPage)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("config_dump: status %d", status)
	}
	if err != nil {
		return d, text, err
	}
	return d, text, json.Unmarshal([]byte(text), &d)
}
