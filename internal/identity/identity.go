// SPDX-License-Identifier: Apache-2.0

// Package identity holds the SPIFFE identity of a workload as a parsed value:
// once an [ID] exists, nothing downstream checks its form again.
//
// It knows the shape of the name and nothing of certificates, files or
// sockets. It imports only the standard library and may be imported by
// anyone.
package identity

import (
	"fmt"
	"strings"
)

const scheme = "spiffe://"

// An ID names a workload to its peers: spiffe://<trust domain>/ns/<namespace>/sa/<service account>
// (contract 7.3). IDs compare with ==. The zero ID is nobody: no certificate
// carries it, no parsed ID equals it.
type ID struct {
	trustDomain, namespace, serviceAccount string
	known                                  bool
}

// New returns the ID of a service account in a namespace of a trust domain.
// Any part may be empty, as the reference allows (contract 4.3), but none may
// hold a slash, which would move the borders between the parts.
func New(trustDomain, namespace, serviceAccount string) (ID, error) {
	for _, part := range []string{trustDomain, namespace, serviceAccount} {
		if strings.Contains(part, "/") {
			return ID{}, fmt.Errorf("identity part %q: holds a slash", part)
		}
	}
	return ID{trustDomain, namespace, serviceAccount, true}, nil
}

// Parse reads the URI form of an identity. It wants exactly five parts after
// the scheme and the literal words ns and sa (contract 4.3, SPIFFE parse).
func Parse(uri string) (ID, error) {
	rest, ok := strings.CutPrefix(uri, scheme)
	if !ok {
		return ID{}, fmt.Errorf("invalid spiffe identity: %s", uri)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return ID{}, fmt.Errorf("invalid spiffe identity: %s", uri)
	}
	return ID{parts[0], parts[2], parts[4], true}, nil
}

// IsZero reports whether id is nobody.
func (id ID) IsZero() bool { return id == ID{} }

// TrustDomain is the part that names the authority, for example cluster.local.
func (id ID) TrustDomain() string { return id.trustDomain }

// Namespace is the Kubernetes namespace of the workload.
func (id ID) Namespace() string { return id.namespace }

// ServiceAccount is the Kubernetes service account of the workload.
func (id ID) ServiceAccount() string { return id.serviceAccount }

// String is the URI form, or the empty string for the zero ID.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return scheme + id.Principal()
}

// Principal is the URI form without the scheme, the form that authorization
// policies compare with (contract 5.5). It is empty for the zero ID.
func (id ID) Principal() string {
	if id.IsZero() {
		return ""
	}
	return id.trustDomain + "/ns/" + id.namespace + "/sa/" + id.serviceAccount
}
