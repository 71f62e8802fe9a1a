// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/ca"
	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// A controlPlane is an istiod on a node, and what an API server would remember
// for it while it is down.
type controlPlane struct {
	t       *testing.T
	node    *netlab.Node
	ca      string // the authority's directory
	objects string // YAML files, one for each object
	issuer  *ca.Embedded
	process *child

	mu sync.Mutex // an object is remembered and told in one step
}

// Ports on the node of istiod.
const (
	portDiscovery = 15012 // istiod's
	portCA        = 15013 // leads there, until it is cut
	controlURL    = "http://127.0.0.1:15080"
)

// newControlPlane prepares an istiod. All of a lab have one root.
func newControlPlane(t *testing.T, lab *netlab.Lab, node *netlab.Node) *controlPlane {
	t.Helper()
	c := &controlPlane{t: t, node: node, ca: filepath.Join(lab.Dir(), "istio-ca"), objects: filepath.Join(lab.Dir(), "objects-"+node.Name())}
	var err error
	c.issuer, err = ca.OpenEmbedded(c.ca, 0)
	must(t, err)
	// The embedded authority names two of its files as Istio does. There the
	// root may be another certificate than the one that signs.
	root, err := os.ReadFile(c.root())
	must(t, err)
	for _, name := range []string{"ca-cert.pem", "cert-chain.pem"} {
		must(t, os.WriteFile(filepath.Join(c.ca, name), root, 0o600))
	}
	must(t, os.Mkdir(c.objects, 0o700))
	return c
}

// root is the file with the certificate that everyone trusts.
func (c *controlPlane) root() string { return filepath.Join(c.ca, "root-cert.pem") }

// start runs istiod and waits until it serves.
func (c *controlPlane) start() {
	c.t.Helper()
	var err error
	c.process, err = startChild(c.node.Host, istio, "istiod", "-ca", c.ca, "-objects", c.objects)
	must(c.t, err)
}

// stop kills istiod: its connections end as a crashed program's do.
func (c *controlPlane) stop() {
	c.t.Helper()
	must(c.t, c.process.kill())
}

// end ends istiod if it runs, and shows the end of what it printed if the test
// has failed.
func (c *controlPlane) end() {
	if c.process == nil {
		return
	}
	if c.process.running() {
		if err := c.process.kill(); err != nil {
			c.t.Errorf("end istiod: %v", err)
		}
	}
	if c.t.Failed() {
		c.t.Logf("istiod of %s printed at last:\n%s", c.node.Name(), c.process.tail())
	}
}

// apply creates or changes objects, of any number in a text.
func (c *controlPlane) apply(t *testing.T, documents ...string) {
	t.Helper()
	c.each(t, "/apply", documents, func(path string, text []byte) error { return os.WriteFile(path, text, 0o600) })
}

// remove deletes objects.
func (c *controlPlane) remove(t *testing.T, documents ...string) {
	t.Helper()
	c.each(t, "/delete", documents, func(path string, _ []byte) error { return os.Remove(path) })
}

// during has objects until the test ends.
func (c *controlPlane) during(t *testing.T, documents ...string) {
	t.Helper()
	c.apply(t, documents...)
	t.Cleanup(func() { c.remove(t, documents...) })
}

func (c *controlPlane) each(t *testing.T, path string, documents []string, remember func(path string, text []byte) error) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, document := range documents {
		for one := range strings.SplitSeq(document, "\n---\n") {
			must(t, remember(filepath.Join(c.objects, fileName(t, one)), []byte(one)))
			if c.process != nil && c.process.running() {
				must(t, c.post(path, one))
			}
		}
	}
}

func (c *controlPlane) post(path, document string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, controlURL+path, strings.NewReader(document))
	if err != nil {
		return err
	}
	resp, err := c.node.HTTPClient().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("istiod's API: %s", text)
	}
	return err
}

// fileName is a name for an object's file, made of what names the object.
func fileName(t *testing.T, document string) string {
	t.Helper()
	var kind, namespace, name string
	for line := range strings.Lines(document) {
		for field, into := range map[string]*string{"kind: ": &kind, "  namespace: ": &namespace, "  name: ": &name} {
			if value, ok := strings.CutPrefix(line, field); ok && *into == "" {
				*into = strings.TrimSpace(value)
			}
		}
	}
	if kind == "" || name == "" {
		t.Fatalf("an object without kind or name:\n%s", document)
	}
	return strings.ToLower(kind + "-" + namespace + "-" + name + ".yaml")
}
