// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/ztunnel-go/ztunnel/dnsproxy"
	"github.com/ztunnel-go/ztunnel/internal/logs"
)

const (
	// hostCache is how many answers about workloads' names are kept, for all
	// pods together (contract 3.8).
	hostCache = 4096

	// resolvConfPoll is how often resolv.conf is looked at. What is new counts
	// when it was there twice: files are written in pieces.
	resolvConfPoll = time.Second

	// maxResolvConf is the largest file that is read, in bytes.
	maxResolvConf = 64 << 10
)

// buildResolver reads who answers what the mesh does not know (contract 1.4),
// and follows it as it changes.
func (n *node) buildResolver(context.Context) error {
	text, err := readFile(n.cfg.ResolvConf, maxResolvConf)
	if err != nil {
		return fmt.Errorf("resolver configuration: %w", err)
	}
	conf, err := dnsproxy.ParseResolvConf(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("%s: %w", n.cfg.ResolvConf, err)
	}
	n.cfg.Resolver = resolverOf(conf)
	n.resolv = dnsproxy.NewSource(conf)
	if err := n.readHosts(); err != nil {
		return err
	}
	n.lookups = dnsproxy.NewResolver(dnsproxy.ResolverConfig{
		Source: n.resolv, Dial: dialHere, Hosts: n.hosts, IPv6: n.cfg.IPv6, Cache: hostCache,
	})
	n.onClose("resolver", func() error { n.lookups.Close(); return nil })
	n.followResolvConf(resolvConfPoll, text)
	return nil
}

// dialHere reaches a nameserver as any other process of our pod would.
func dialHere(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, addr.String())
}

// readHosts takes the names of the hosts file, if there is one.
func (n *node) readHosts() error {
	const path = "/etc/hosts"
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("hosts file: %w", err)
	}
	defer f.Close()
	if n.hosts, err = dnsproxy.ParseHosts(f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// readFile reads a file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return text, err
}

// followResolvConf looks at the file until the node closes.
func (n *node) followResolvConf(every time.Duration, text []byte) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with cancel
		defer close(done)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		f := resolvConfFile{node: n, judged: string(text), last: string(text)}
		for {
			select {
			case <-ticker.C:
				f.look()
			case <-ctx.Done():
				return
			}
		}
	}()
	n.onClose("resolv.conf", func() error { cancel(); <-done; return nil })
}

// A resolvConfFile is what became of the file since the start.
type resolvConfFile struct {
	node   *node
	judged string // the version that was taken or refused last
	last   string // what was there at the last look
}

// look takes a new version if it can be understood. If not, or if there is no
// file, what was in force stays so, and it is told and counted once.
func (f *resolvConfFile) look() {
	text, err := readFile(f.node.cfg.ResolvConf, maxResolvConf)
	now := string(text)
	if err != nil {
		now = err.Error()
	}
	settled := now == f.last
	f.last = now
	if !settled || now == f.judged {
		return
	}
	f.judged = now
	var conf dnsproxy.ResolvConf
	if err == nil {
		conf, err = dnsproxy.ParseResolvConf(bytes.NewReader(text))
	}
	log := logs.Target(f.node.logger, "dns")
	path := slog.String("path", f.node.cfg.ResolvConf)
	f.node.dnsMetrics.ResolvConfChanged(err == nil)
	if err != nil {
		log.Warn("the new resolver configuration is refused, the one before stays in force", path, slog.String("error", err.Error()))
		return
	}
	f.node.resolv.Set(conf)
	log.Info("the resolver configuration has changed", path, slog.Any("nameservers", conf.Nameservers))
}

// dnsCache is how many answers a pod's DNS server keeps: its own number, or
// none (DNS_CACHE).
func (c *Config) dnsCache() int {
	if c.DNSCache {
		return 0
	}
	return -1
}
