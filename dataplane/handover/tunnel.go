// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/dataplane/hbone"
	"github.com/ztunnel-go/ztunnel/dataplane/live"
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// A Feature is something that a tunnel may need and a reader must know, since to
// skip it would change what the tunnel does. Numbers are never used twice.
type Feature uint32

const (
	// FeatureTunnel is HTTP/2 CONNECT in TLS 1.3 with AES-GCM, as format 1 has it.
	FeatureTunnel Feature = 1
	// FeatureChains is a tunnel that ends when one of its peer's certificates is
	// revoked.
	FeatureChains Feature = 2
)

// features are those of this release.
func features() []Feature { return []Feature{FeatureTunnel, FeatureChains} }

// A Tunnel is a tunnel that has been stopped, with its connections. It holds
// secrets and owns its descriptors.
type Tunnel struct {
	Image         *engine.Image
	FDs           []int
	Local, Remote netip.AddrPort // may be zero
	Server        *Server        // one of the two is set
	Client        *Client
	// Chains are what the handshake verified, DER, each leaf first: for lists of
	// revoked certificates, where there are any.
	Chains [][][]byte
	// Connections by the id of their stream.
	Connections map[uint32]*Connection
}

// Server is what is known of a tunnel that a peer made.
type Server struct {
	Peer, Dst netip.AddrPort
	Identity  identity.ID // zero: the peer's certificate named none
}

// Client is what is known of a tunnel that we made.
type Client struct {
	Key    hbone.Key
	Pooled bool // it takes more connections
}

// A Connection is one user connection: what its log line, metrics and policy
// need.
type Connection struct {
	Report    report.Past
	Inbound   *live.Inbound  // one of the two is set; its Destination is the reader's to find
	Outbound  *live.Outbound //
	Endpoints []string       // UIDs of those that it is a load for
	Ends      *relay.EndsState
}

// needs are what the reader must know.
func (t *Tunnel) needs() []Feature {
	need := []Feature{FeatureTunnel}
	if len(t.Chains) > 0 {
		need = append(need, FeatureChains)
	}
	return need
}

// Close gives up the descriptors and the secrets.
func (t *Tunnel) Close() {
	for _, fd := range t.FDs {
		unix.Close(fd)
	}
	t.FDs = nil
	t.Image.Wipe()
}

// connections is how many a lot holds.
func connections(lot []*Tunnel) (n int) {
	for _, t := range lot {
		n += t.Image.Open()
	}
	return n
}
