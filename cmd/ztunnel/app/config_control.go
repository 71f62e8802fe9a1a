// SPDX-License-Identifier: Apache-2.0

package app

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"
)

// Default paths are relative, as the reference's are: the working directory of
// the container has to be / (contract 1.5).
const (
	defaultRootCert      = "./var/run/secrets/istio/root-cert.pem"
	defaultToken         = "./var/run/secrets/tokens/istio-token"
	defaultEmbeddedCADir = "./var/lib/ztunnel/ca"
)

// controlPlane reads where resources and certificates come from.
func (r *reader) controlPlane(mesh proxyConfig) ControlPlane {
	_, inKubernetes := r.get("KUBERNETES_SERVICE_HOST")
	usual := "https://localhost:15012"
	if inKubernetes {
		usual = "https://istiod.istio-system.svc:15012"
	}
	discovery := usual
	if r.laboratory(inKubernetes) {
		discovery = ""
	}
	if mesh.discoveryAddress != nil {
		discovery = *mesh.discoveryAddress
	}
	c := ControlPlane{
		XDSAddress:     r.uri(r.text("XDS_ADDRESS", discovery)),
		XDSRoot:        r.rootCert("XDS_ROOT_CA"),
		CARoot:         r.rootCert("CA_ROOT_CA"),
		AltXDSHostname: r.text("ALT_XDS_HOSTNAME", ""),
		AltCAHostname:  r.text("ALT_CA_HOSTNAME", ""),
		XDSHeaders:     r.headers("XDS_HEADER_"),
		CAHeaders:      r.headers("CA_HEADER_"),
		OnDemand:       r.flag("XDS_ON_DEMAND", false),
		FakeCA:         r.flag("FAKE_CA", false),
		EmbeddedCADir:  r.text("EMBEDDED_CA_DIR", defaultEmbeddedCADir),
		SecretTTL:      r.duration("SECRET_TTL", 24*time.Hour),
		CRLPath:        r.text("CRL_PATH", ""),
		PQC:            r.text("COMPLIANCE_POLICY", "") == "pqc",
		TLS12:          r.text("TLS12_ENABLED", "") == "true",
	}
	c.Token, c.TokenFile = r.token()
	if !c.FakeCA {
		// discoveryAddress is not asked: contract 1.4.
		if c.CAAddress = r.uri(r.text("CA_ADDRESS", usual)); c.CAAddress == "" {
			r.failWith(errors.New("invalid configuration: ca_address must be set: CA_ADDRESS is empty and FAKE_CA is not on"))
		}
		return c
	}
	if dir, ok := r.get("EMBEDDED_CA_DIR"); inKubernetes && (!ok || dir == "") {
		// A cluster has an authority. Whoever really wants one that only this
		// node trusts says where it is kept.
		r.failWith(errors.New("invalid configuration: FAKE_CA=true is refused inside Kubernetes " +
			"(KUBERNETES_SERVICE_HOST is set) unless EMBEDDED_CA_DIR says where its root and key are kept"))
	}
	if c.EmbeddedCADir == "" {
		r.failWith(errors.New("invalid configuration: EMBEDDED_CA_DIR is empty"))
	}
	return c
}

// uri checks an address and gives it the scheme https if it has none. Empty
// stays empty.
func (r *reader) uri(s string) string {
	if s == "" {
		return ""
	}
	whole := s
	if !strings.Contains(s, "://") {
		whole = "https://" + s
	}
	u, err := url.Parse(whole)
	switch {
	case err != nil:
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err // the rest of the text repeats the address
		}
		r.failWith(fmt.Errorf("invalid uri: %s: %v", s, err))
	case u.Host == "" || strings.ContainsAny(s, " \t"):
		r.failWith(fmt.Errorf("invalid uri: %s: no host", s))
	}
	return whole
}

// rootCert decides once, at start, what a value is: a path if it exists, the
// system's store if it says SYSTEM, else the certificates themselves.
func (r *reader) rootCert(name string) RootCert {
	v := r.text(name, defaultRootCert)
	if _, err := os.Stat(v); err == nil {
		return RootCert{File: v}
	}
	if v == "SYSTEM" {
		return RootCert{System: true}
	}
	return RootCert{Inline: v}
}

// token says how we authenticate: by a literal, or by a file whose content is
// read anew for each call.
func (r *reader) token() (literal, file string) {
	v, set := r.get("AUTH_TOKEN")
	if !set {
		v = defaultToken
	}
	if _, err := os.Stat(v); err == nil {
		return "", v
	}
	if set {
		return v, ""
	}
	return "", ""
}

// headers collects the variables with a prefix as gRPC metadata.
func (r *reader) headers(prefix string) []Header {
	var headers []Header
	for _, v := range r.withPrefix(prefix) {
		key := strings.ToLower(strings.TrimPrefix(v.name, prefix))
		if !isMetadataKey(key) {
			r.failWith(fmt.Errorf("failed to parse header key: %s", v.name))
		}
		if strings.ContainsFunc(v.value, func(c rune) bool { return c < ' ' || c > '~' }) {
			r.failWith(fmt.Errorf("failed to parse header value: %s=%q", v.name, v.value))
		}
		headers = append(headers, Header{Name: key, Value: v.value})
	}
	return headers
}

// isMetadataKey holds the rule of gRPC for ASCII metadata: these letters, and
// not the suffix that means binary.
func isMetadataKey(key string) bool {
	legal := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
	}
	return key != "" && !strings.HasSuffix(key, "-bin") &&
		!strings.ContainsFunc(key, func(c rune) bool { return !legal(c) })
}

// localState says which of file and text holds local resources.
func (r *reader) localState() LocalState {
	path, hasPath := r.get("LOCAL_XDS_PATH")
	inline, hasInline := r.get("LOCAL_XDS")
	if hasPath && hasInline {
		r.failWith(errors.New("invalid configuration: only one of LOCAL_XDS_PATH or LOCAL_XDS may be set"))
	}
	return LocalState{Path: path, Inline: inline}
}

// laboratory reports whether nobody can mean the usual control plane: outside
// Kubernetes, with certificates of our own and the state in a file. Waiting
// for one on localhost would only keep the proxy from ever being ready.
func (r *reader) laboratory(inKubernetes bool) bool {
	fake, _ := r.get("FAKE_CA")
	_, file := r.get("LOCAL_XDS_PATH")
	_, inline := r.get("LOCAL_XDS")
	return !inKubernetes && fake == "true" && (file || inline)
}
