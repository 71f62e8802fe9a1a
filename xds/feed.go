// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ztunnel-go/ztunnel/internal/control"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/xds/delta"
)

// The resource types that we subscribe to.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// defaultInstanceIP stands for an address that is not known (contract 8.2).
const defaultInstanceIP = "1.1.1.1"

// A Node is who we say we are (contract 8.2). Empty fields are sent empty,
// but for InstanceIP, which then is 1.1.1.1.
type Node struct {
	InstanceIP, PodName, PodNamespace, NodeName string
	Metadata                                    map[string]string          // over the fields above
	MetadataJSON                                map[string]json.RawMessage // over Metadata; what is no JSON is left out
}

// A Config says which control plane to follow, and as whom.
type Config struct {
	// Control is where it is, and how we know each other.
	Control control.Config
	// Node is how we describe ourselves.
	Node Node
	// OnDemand asks for workloads and services only as [Feed.Demand] names
	// them.
	OnDemand bool
	// LocalNode is the node whose workloads are ours; empty: all are, but
	// none is worth a certificate in advance (contract 7.6).
	LocalNode string
}

// Certificates is told which identities will be needed, and which no longer.
// It must not block; it is called by one goroutine.
type Certificates interface {
	Prefetch(id identity.ID)
	Forget(id identity.ID)
}

// Hooks are who is told of what arrives. Each may be nil.
type Hooks struct {
	Certificates Certificates // nil in dedicated mode
	Metrics      *Metrics
}

// A Feed keeps a store in step with a control plane. What a local document has
// put there stays until the control plane says otherwise of the same key.
type Feed struct {
	client *delta.Client
	store  *mesh.Store
	logger *slog.Logger

	translate translator // the client's goroutine's, as is the next
	prefetch  prefetch

	idle    *idleness // nil: all is kept, being all that there is
	metrics *Metrics  // may be nil
}

// Open begins to follow a control plane and returns at once; [Feed.Ready]
// tells when the picture is complete. What is wrong is logged and tried again.
func Open(cfg Config, store *mesh.Store, hooks Hooks, logger *slog.Logger) *Feed {
	f := &Feed{
		store:    store,
		logger:   logs.Target(logger, "xds"),
		prefetch: prefetch{to: hooks.Certificates, node: cfg.LocalNode, users: map[identity.ID]int{}},
	}
	f.metrics = hooks.Metrics
	if cfg.OnDemand {
		f.idle = newIdleness()
	}
	conf := delta.Config{
		Control: cfg.Control,
		Node:    cfg.Node.delta(f.logger),
		Types: []delta.Type{
			{URL: AddressType, OnDemand: cfg.OnDemand, Handle: f.addresses},
			{URL: AuthorizationType, Handle: f.authorizations},
		},
	}
	if hooks.Metrics != nil {
		conf.Observer = hooks.Metrics
	}
	f.client = delta.Open(conf, logger)
	return f
}

// Ready is closed when policies, and without OnDemand workloads and services
// too, have arrived once without fault (contract 8.5).
func (f *Feed) Ready() <-chan struct{} { return f.client.Ready() }

// Demand asks for a workload or service, by network/ip, namespace/hostname or
// uid, and returns when the control plane has spoken of it; the store then
// holds what it said. The error is ctx's, or that the feed was closed
// (contract 8.7).
func (f *Feed) Demand(ctx context.Context, key string) error {
	return f.client.Demand(ctx, AddressType, key)
}

// Close stops following and waits until that is done. The store keeps what it
// holds. It may be called again.
func (f *Feed) Close() error { return f.client.Close() }

// delta makes the node of the protocol.
func (n Node) delta(logger *slog.Logger) delta.Node {
	ip := orElse(n.InstanceIP, defaultInstanceIP)
	md := &structpb.Struct{Fields: map[string]*structpb.Value{
		"NAME":         structpb.NewStringValue(n.PodName),
		"NAMESPACE":    structpb.NewStringValue(n.PodNamespace),
		"INSTANCE_IPS": structpb.NewStringValue(ip),
		"NODE_NAME":    structpb.NewStringValue(n.NodeName),
	}}
	for k, v := range n.Metadata {
		md.Fields[k] = structpb.NewStringValue(v)
	}
	for _, k := range slices.Sorted(maps.Keys(n.MetadataJSON)) {
		v, err := jsonValue(n.MetadataJSON[k])
		if err != nil {
			logger.Error(fmt.Sprintf("failed to parse %s=%s", k, n.MetadataJSON[k]))
			continue
		}
		md.Fields[k] = v
	}
	return delta.Node{
		// The domain is this word whatever the cluster's is (contract 8.2).
		ID:       fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.cluster.local", ip, n.PodName, n.PodNamespace, n.PodNamespace),
		Metadata: md,
	}
}

// jsonValue goes by way of encoding/json, which of two equal keys takes the
// later, as the reference does; protobuf's own reader refuses them.
func jsonValue(raw json.RawMessage) (*structpb.Value, error) {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, err
	}
	return structpb.NewValue(v)
}
