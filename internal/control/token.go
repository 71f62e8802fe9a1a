// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc/credentials"
)

// A Token is how we authenticate: a literal, or a file. The zero Token is
// none.
type Token struct {
	Literal string
	File    string // wins; read anew for each call, since the kubelet rotates it
}

// Read returns the token byte for byte, for trimming would make a token that
// the reference refuses (contract 7.1). ok is false if there is none to send.
func (t Token) Read() (token string, ok bool, err error) {
	if t.File == "" {
		return t.Literal, t.Literal != "", nil
	}
	data, err := os.ReadFile(t.File)
	if err != nil {
		return "", false, fmt.Errorf("token: %w", err)
	}
	if len(data) == 0 {
		return "", false, errors.New("token file exists, but was empty")
	}
	return string(data), true, nil
}

// Metadata is what goes with one call: the token, read now, the cluster, and
// the configured headers, which win over both.
func (c Config) Metadata() (map[string]string, error) {
	token, ok, err := c.Token.Read()
	if err != nil {
		return nil, err
	}
	md := make(map[string]string, len(c.Headers)+2)
	if ok {
		if !isHeaderValue(token) {
			return nil, errors.New("token: not a legal header value (it is used as it is: is there a line break in it?)")
		}
		md["authorization"] = "Bearer " + token
		md["clusterid"] = c.ClusterID
	}
	for _, h := range c.Headers {
		md[h.Name] = h.Value
	}
	return md, nil
}

// isHeaderValue holds RFC 9110 5.5: no control characters but the tab.
func isHeaderValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// caller puts Metadata on each call.
type caller struct{ cfg Config }

var _ credentials.PerRPCCredentials = caller{}

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (c caller) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return c.cfg.Metadata()
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials].
func (caller) RequireTransportSecurity() bool { return true }
