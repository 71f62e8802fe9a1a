// SPDX-License-Identifier: Apache-2.0

package variables

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ztunnel-go/ztunnel/test/ignore"
)

// Names are ztunnel's variables (contract 1.4), which the table has to have.
func Names() []string {
	return strings.Fields(`
		ENABLE_PROXY ISTIO_META_DNS_CAPTURE ISTIO_META_DNS_PROXY_ADDR KUBERNETES_SERVICE_HOST XDS_ADDRESS CA_ADDRESS FAKE_CA
		XDS_ROOT_CA CA_ROOT_CA ALT_XDS_HOSTNAME ALT_CA_HOSTNAME AUTH_TOKEN CLUSTER_ID ISTIO_META_CLUSTER_ID CLUSTER_DOMAIN
		NETWORK NODE_NAME PREFERED_SERVICE_NAMESPACE PROXY_MODE PROXY_WORKLOAD_INFO PROXY_CONFIG LOCAL_XDS_PATH LOCAL_XDS
		XDS_ON_DEMAND SECRET_TTL POOL_MAX_STREAMS_PER_CONNECTION POOL_UNUSED_RELEASE_TIMEOUT HTTP2_STREAM_WINDOW_SIZE
		HTTP2_CONNECTION_WINDOW_SIZE HTTP2_FRAME_SIZE CONNECTION_TERMINATION_DEADLINE TERMINATION_GRACE_PERIOD_SECONDS
		ZTUNNEL_WORKER_THREADS ZTUNNEL_RESOURCE_CPU_LIMIT ZTUNNEL_RESOURCE_CPU_REQUEST ZTUNNEL_CPU_LIMIT ENABLE_ORIG_SRC
		INPOD_UDS INPOD_PORT_REUSE PACKET_MARK KEEPALIVE_ENABLED KEEPALIVE_TIME KEEPALIVE_INTERVAL KEEPALIVE_RETRIES
		USER_TIMEOUT_ENABLED XDS_HEADER_* CA_HEADER_* LOCALHOST_APP_TUNNEL IPV6_ENABLED UNSTABLE_ENABLE_SOCKS5 CRL_PATH
		ENABLE_RESPONSE_BAGGAGE POD_NAMESPACE SERVICE_ACCOUNT POD_NAME TRUST_DOMAIN INSTANCE_IP ISTIO_META_ISTIO_VERSION
		ISTIO_META_* ISTIO_METAJSON_* AUTHZ_POLICY_INFO_LOGGING COMPLIANCE_POLICY TLS12_ENABLED RUST_LOG LOG_FORMAT`)
}

// functions are those of a package's test files, by name.
func functions(dir string) (map[string]*ast.FuncDecl, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	found := map[string]*ast.FuncDecl{}
	for _, path := range paths {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("read tests: %w", err)
		}
		for _, d := range file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				found[fn.Name.Name] = fn
			}
		}
	}
	return found, nil
}

// Sets reports whether a test, or what it calls in its package's tests, has
// the variable's name, or one with its prefix, among its strings.
func (t Test) Sets(root, variable string) (bool, error) {
	all, err := functions(filepath.Join(root, t.Package))
	if err != nil {
		return false, err
	}
	if all[t.Name] == nil {
		return false, fmt.Errorf("%v does not exist", t)
	}
	return mentions(all, t.Name, variable, map[string]bool{}), nil
}

func mentions(all map[string]*ast.FuncDecl, name, variable string, seen map[string]bool) bool {
	if seen[name] || all[name] == nil {
		return false
	}
	seen[name] = true
	found := false
	ast.Inspect(all[name], func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			text, err := strconv.Unquote(n.Value)
			found = found || err == nil && (text == variable || strings.HasSuffix(variable, "*") && ignore.Matches(variable, text))
		case *ast.CallExpr:
			if fn, ok := n.Fun.(*ast.Ident); ok {
				found = found || mentions(all, fn.Name, variable, seen)
			}
		}
		return !found
	})
	return found
}
