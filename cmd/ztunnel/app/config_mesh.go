// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// meshConfigPath is relative to the working directory, as the reference's is:
// in its image that is / (contract 1.3).
const meshConfigPath = "./etc/istio/config/mesh"

const metaPrefix = "ISTIO_META_"

// A proxyConfig is the part of Istio's ProxyConfig that concerns us. Nil
// fields were not given.
type proxyConfig struct {
	discoveryAddress     *string
	adminPort, statsPort *uint16
	concurrency          *uint16
	metadata             map[string]string
}

// proxyConfig reads the mesh configuration's file and PROXY_CONFIG, and lays
// the second over the first: scalars whole, metadata key by key.
func (r *reader) proxyConfig() proxyConfig {
	file, err := meshConfigFile(meshConfigPath)
	if err != nil {
		r.failWith(fmt.Errorf("error parsing proxy config: failed parsing mesh config file %s: %v", meshConfigPath, err))
	}
	var env proxyConfig
	if text := r.text("PROXY_CONFIG", ""); text != "" {
		if env, err = parseProxyConfig([]byte(text)); err != nil {
			r.failWith(fmt.Errorf("error parsing proxy config: failed parsing proxy config env: %v", err))
		}
	}
	return file.overlaid(env)
}

func (c proxyConfig) overlaid(over proxyConfig) proxyConfig {
	merged := proxyConfig{
		discoveryAddress: first(over.discoveryAddress, c.discoveryAddress),
		adminPort:        first(over.adminPort, c.adminPort),
		statsPort:        first(over.statsPort, c.statsPort),
		concurrency:      first(over.concurrency, c.concurrency),
		metadata:         map[string]string{},
	}
	maps.Copy(merged.metadata, c.metadata)
	maps.Copy(merged.metadata, over.metadata)
	return merged
}

func first[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// meshConfigFile reads the key defaultConfig of a file. A file that is not
// there is no error, nor is one without the key.
func meshConfigFile(path string) (proxyConfig, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return proxyConfig{}, nil
	}
	if err != nil {
		return proxyConfig{}, err
	}
	doc, err := parseYAML(data)
	if err != nil {
		return proxyConfig{}, err
	}
	def, ok := doc["defaultConfig"]
	if !ok || isNull(def) {
		return proxyConfig{}, nil
	}
	fields, err := mapping(def)
	if err != nil {
		return proxyConfig{}, fmt.Errorf("defaultConfig: %w", err)
	}
	c, err := proxyConfigOf(fields)
	if err != nil {
		return proxyConfig{}, fmt.Errorf("defaultConfig: %w", err)
	}
	return c, nil
}

func parseProxyConfig(data []byte) (proxyConfig, error) {
	fields, err := parseYAML(data)
	if err != nil {
		return proxyConfig{}, err
	}
	return proxyConfigOf(fields)
}

// proxyConfigOf takes the fields that we know; the others are Istio's.
func proxyConfigOf(fields map[string]yaml.Node) (proxyConfig, error) {
	var c proxyConfig
	if _, ok := fields["proxyMetadata"]; !ok {
		return c, errors.New("missing field `proxyMetadata`")
	}
	values, err := mapping(fields["proxyMetadata"])
	if err != nil {
		return c, fmt.Errorf("proxyMetadata: %w", err)
	}
	c.metadata = make(map[string]string, len(values))
	for key, node := range values {
		if c.metadata[key], err = scalar(node); err != nil {
			return c, fmt.Errorf("proxyMetadata.%s: %w", key, err)
		}
	}
	if node, ok := fields["discoveryAddress"]; ok && !isNull(node) {
		address, err := scalar(node)
		if err != nil {
			return c, fmt.Errorf("discoveryAddress: %w", err)
		}
		c.discoveryAddress = &address
	}
	for _, f := range []struct {
		name string
		into **uint16
	}{
		{"proxyAdminPort", &c.adminPort},
		{"statsPort", &c.statsPort},
		{"concurrency", &c.concurrency},
	} {
		node, ok := fields[f.name]
		if !ok || isNull(node) {
			continue
		}
		n, err := parseUnsigned(node.Value, 16)
		if err != nil || node.ShortTag() != "!!int" {
			return c, fmt.Errorf("line %d: %s: %q is no number from 0 to 65535", node.Line, f.name, node.Value)
		}
		small := uint16(n)
		*f.into = &small
	}
	return c, nil
}

// parseYAML reads one document that is a mapping. An empty one has no keys.
func parseYAML(data []byte) (map[string]yaml.Node, error) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return mapping(*doc.Content[0])
}

func mapping(node yaml.Node) (map[string]yaml.Node, error) {
	if node.Kind == yaml.AliasNode {
		node = *node.Alias
	}
	if node.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: not a mapping", node.Line)
	}
	fields := map[string]yaml.Node{}
	if err := node.Decode(&fields); err != nil {
		return nil, err
	}
	return fields, nil
}

// scalar is the text of a node that is a string in YAML's eyes: the number 1
// is none, as the reference insists (contract 1.3).
func scalar(node yaml.Node) (string, error) {
	if node.Kind == yaml.AliasNode {
		node = *node.Alias
	}
	if node.Kind != yaml.ScalarNode || node.ShortTag() != "!!str" {
		return "", fmt.Errorf("line %d: %q is not a string (quote it)", node.Line, node.Value)
	}
	return node.Value, nil
}

func isNull(node yaml.Node) bool { return node.ShortTag() == "!!null" }

// metadata is what the control plane is told of us: the configuration's, with
// one prefix taken from each key that has it, and over it the ISTIO_META_
// variables with all their prefixes taken (contract 1.3).
func (r *reader) metadata(configured map[string]string) map[string]string {
	meta := make(map[string]string, len(configured))
	for key, value := range configured {
		meta[strings.TrimPrefix(key, metaPrefix)] = value
	}
	for _, v := range r.withPrefix(metaPrefix) {
		meta[withoutAll(v.name, metaPrefix)] = v.value
	}
	return meta
}

// withoutAll takes prefix from s as often as it is there.
func withoutAll(s, prefix string) string {
	for strings.HasPrefix(s, prefix) {
		s = s[len(prefix):]
	}
	return s
}
