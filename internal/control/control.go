// SPDX-License-Identifier: Apache-2.0

// Package control makes the channel to the control plane: gRPC over TLS, to
// the server that pushes resources and to the one that signs certificates
// alike (contract 7.1, 7.2).
//
// It knows whom to trust, which names to expect, and how we say who we are.
// It speaks no protocol of either server: that is xds/delta and internal/ca.
// It decides nothing about when to connect again. It logs nothing, reads no
// environment, imports internal/mtls for what every TLS connection of ours has
// in common, and is imported by those two.
//
// What may change under a running process is read again when it is needed:
// root certificates by each [Dial] and [Config.TLS], the token by each call.
package control

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/ztunnel-go/ztunnel/internal/mtls"
)

const (
	// connectTimeout is for one TCP connect, keepaliveTime and the two after
	// it are the socket's probes, pingTime and pingTimeout HTTP/2's
	// (contract 7.2).
	connectTimeout    = 5 * time.Second
	keepaliveTime     = 300 * time.Second
	keepaliveInterval = 75 * time.Second
	keepaliveProbes   = 9
	pingTime          = 30 * time.Second
	pingTimeout       = 10 * time.Second

	defaultPort = "443" // of https
)

// A Config says where a control plane is and how to recognise it and be
// recognised. It is a plain value; nothing is checked before it is used.
type Config struct {
	// Address is https://host:port. Other schemes are refused.
	Address string
	// Roots are what the server's certificate must lead to.
	Roots Roots
	// AltHostname is a further DNS name that the server may prove; empty:
	// none. The name sent to the server stays Address's.
	AltHostname string
	// Token is how we authenticate. The zero Token sends no headers.
	Token Token
	// ClusterID goes along with a token, as the header clusterid.
	ClusterID string
	// Headers go with each call (XDS_HEADER_*, CA_HEADER_*).
	Headers []Header
	// TLS12 also allows TLS 1.2; PQC leaves X25519MLKEM768 as the only key
	// exchange (contract 4.1).
	TLS12, PQC bool
	// MaxMessage is the largest message taken, in bytes; 0: gRPC's 4 MiB.
	MaxMessage int
	// DialContext replaces TCP in tests; nil: TCP.
	DialContext func(ctx context.Context, address string) (net.Conn, error)
}

// A Header is one of gRPC's metadata; Name is in lower case.
type Header struct{ Name, Value string }

// Dial makes a channel with the root certificates as they are now. It does not
// connect: the first call does, and later calls connect again where the
// connection was lost, with these same roots. options are added to the
// channel's own.
//
// The errors are local: the address, the roots, the alternate name.
func Dial(cfg Config, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	conf, err := cfg.TLS()
	if err != nil {
		return nil, err
	}
	hostport, _, err := cfg.server()
	if err != nil {
		return nil, err
	}
	dial := cfg.DialContext
	if dial == nil {
		dial = dialTCP
	}
	own := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithPerRPCCredentials(caller{cfg}),
		grpc.WithContextDialer(dial),
		grpc.WithNoProxy(), // the environment has one door, and a proxy is not behind it
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingTime, Timeout: pingTimeout}),
	}
	if cfg.MaxMessage > 0 {
		own = append(own, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(cfg.MaxMessage)))
	}
	// passthrough: the dialer resolves names, at each connect.
	conn, err := grpc.NewClient("passthrough:///"+hostport, append(own, options...)...)
	if err != nil {
		return nil, fmt.Errorf("channel to %s: %v", cfg.Address, err)
	}
	return conn, nil
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{
		Timeout: connectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: keepaliveTime, Interval: keepaliveInterval, Count: keepaliveProbes,
		},
	}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", address)
}

// server splits Address into host:port, which is the :authority of calls, and
// the host, which is the name that the server must prove.
func (c Config) server() (hostport, host string, err error) {
	u, err := url.Parse(c.Address)
	if err != nil {
		return "", "", fmt.Errorf("control plane address %q: %v", c.Address, err)
	}
	if u.Scheme != "https" {
		return "", "", fmt.Errorf("control plane address %q: the scheme must be https", c.Address)
	}
	host, port := u.Hostname(), u.Port()
	if host == "" {
		return "", "", fmt.Errorf("control plane address %q: no host", c.Address)
	}
	if port == "" {
		port = defaultPort
	}
	return net.JoinHostPort(host, port), host, nil
}

// TLS is the configuration for one channel, with the roots read now. gRPC
// fills in the server's name.
func (c Config) TLS() (*tls.Config, error) {
	_, host, err := c.server()
	if err != nil {
		return nil, err
	}
	if c.AltHostname != "" && !isDNSName(c.AltHostname) {
		return nil, fmt.Errorf("alternate hostname %q: invalid dns name", c.AltHostname)
	}
	pool, err := c.Roots.Pool()
	if err != nil {
		return nil, err
	}
	conf := mtls.Base(mtls.Options{TLS12: c.TLS12, PQC: c.PQC})
	conf.RootCAs = pool
	if c.AltHostname != "" {
		// crypto/tls compares with the one name that it also sends.
		conf.InsecureSkipVerify = true
		conf.VerifyConnection = eitherName(pool, host, c.AltHostname)
	}
	return conf, nil
}
