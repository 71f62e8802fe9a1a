// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/ztunnel-go/ztunnel/internal/ca"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/control"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/revocation"
	"github.com/ztunnel-go/ztunnel/xds"
)

// maxXDSMessage is the largest resource message taken, in bytes (contract 8.1).
const maxXDSMessage = 200 << 20

// buildCerts makes the store of certificates, fed by istiod's authority or by
// the embedded one.
func (n *node) buildCerts(context.Context) error {
	log := logs.Target(n.logger, "ztunnel::identity")
	open := n.istiodIssuer
	if n.cfg.Control.FakeCA {
		open = n.embeddedIssuer
	}
	issuer, err := open(log)
	if err != nil {
		return err
	}
	n.certs = certs.New(issuer, certs.Config{}, log)
	n.onClose("certificates", func() error { n.certs.Close(); return nil })
	return nil
}

// embeddedIssuer signs with a key of our own, and says so at every start.
func (n *node) embeddedIssuer(log *slog.Logger) (certs.Issuer, error) {
	issuer, err := ca.OpenEmbedded(n.cfg.Control.EmbeddedCADir, n.cfg.Control.SecretTTL)
	if err != nil {
		return nil, err
	}
	n.registry.EmbeddedCA()
	for _, w := range issuer.Warnings() {
		log.Warn(w)
	}
	log.Warn("FAKE_CA is on: certificates come from an authority of our own, whoever reads its key can be anyone",
		slog.String("dir", n.cfg.Control.EmbeddedCADir))
	return issuer, nil
}

// istiodIssuer asks the control plane's authority, on behalf of each workload.
func (n *node) istiodIssuer(log *slog.Logger) (certs.Issuer, error) {
	issuer, err := ca.OpenIstiod(n.istiodConfig(log))
	if err != nil {
		return nil, err
	}
	n.onClose("certificate authority", issuer.Close)
	return issuer, nil
}

func (n *node) istiodConfig(log *slog.Logger) ca.IstiodConfig {
	c := n.cfg.Control
	channel := n.channel(c.CAAddress, c.CARoot, c.CAHeaders)
	channel.AltHostname = c.AltCAHostname
	return ca.IstiodConfig{Channel: channel, TTL: c.SecretTTL, Impersonate: !n.cfg.Dedicated, Logger: log}
}

// buildRevocation reads the lists of revoked certificates, if there are to be
// any. The counters are there in any case.
func (n *node) buildRevocation(context.Context) error {
	counters := revocation.NewMetrics(n.registry.Registerer())
	if n.cfg.Control.CRLPath == "" {
		return nil
	}
	revoked, err := revocation.Open(revocation.Config{
		Path: n.cfg.Control.CRLPath, Recorder: counters, Logger: logs.Target(n.logger, "ztunnel::tls::crl"),
	})
	if err != nil {
		return fmt.Errorf("CRL_PATH: %w", err)
	}
	n.revoked = revoked
	n.onClose("revocation", func() error { revoked.Close(); return nil })
	return nil
}

// channel is what the two conversations with the control plane have in common
// (contract 7.2).
func (n *node) channel(address string, root RootCert, headers []Header) control.Config {
	c := n.cfg.Control
	conf := control.Config{
		Address:   address,
		Roots:     control.Roots{File: root.File, System: root.System, Inline: root.Inline},
		Token:     control.Token{Literal: c.Token, File: c.TokenFile},
		ClusterID: n.cfg.ClusterID,
		TLS12:     c.TLS12,
		PQC:       c.PQC,
	}
	for _, h := range headers {
		conf.Headers = append(conf.Headers, control.Header{Name: h.Name, Value: h.Value})
	}
	return conf
}

// followControlPlane keeps the store in step with istiod, if there is one.
func (n *node) followControlPlane() {
	if n.cfg.Control.XDSAddress == "" {
		return
	}
	hooks := xds.Hooks{Metrics: xds.NewMetrics(n.registry.Registerer())}
	if !n.cfg.Dedicated { // which fetches no certificate ahead (contract 7.6)
		hooks.Certificates = n.certs
	}
	n.feed = xds.Open(n.xdsConfig(), n.store, hooks, n.logger)
	n.onClose("control plane", n.feed.Close)
}

func (n *node) xdsConfig() xds.Config {
	c := n.cfg
	channel := n.channel(c.Control.XDSAddress, c.Control.XDSRoot, c.Control.XDSHeaders)
	channel.AltHostname = c.Control.AltXDSHostname
	channel.MaxMessage = maxXDSMessage
	return xds.Config{
		Control: channel,
		Node: xds.Node{
			InstanceIP: c.InstanceIP, PodName: c.PodName, PodNamespace: c.PodNamespace, NodeName: c.LocalNode,
			Metadata: c.Metadata, MetadataJSON: c.MetadataJSON,
		},
		OnDemand:  c.Control.OnDemand,
		LocalNode: c.LocalNode,
	}
}

// awaitState waits for the first whole picture of the mesh: a pod that is
// served before it would be served wrongly (contract 8.5). It reports false if
// ctx ended first, where the reference would hang (contract 15.4).
func (n *node) awaitState(ctx context.Context) bool {
	if n.feed != nil {
		select {
		case <-n.feed.Ready():
		case <-ctx.Done():
			return false
		}
	}
	n.state.Done()
	return true
}
