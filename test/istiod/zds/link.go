// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"context"
	"time"
	"unsafe"

	corev1 "k8s.io/api/core/v1"

	"istio.io/istio/cni/pkg/nodeagent"
	"istio.io/istio/cni/pkg/trafficmanager"
)

// The parts of Istio's node agent that need no API server are not exported;
// these are the functions themselves, of the one version in go.mod. Pointers
// to their types are unsafe.Pointer here, which is passed the same way.

//go:linkname newZtunnelServer istio.io/istio/cni/pkg/nodeagent.newZtunnelServer
func newZtunnelServer(addr string, pods nodeagent.PodNetnsCache, keepalive time.Duration) (unsafe.Pointer, error)

//go:linkname newPodNetnsCache istio.io/istio/cni/pkg/nodeagent.newPodNetnsCache
func newPodNetnsCache(open func(path string) (nodeagent.NetnsCloser, error)) unsafe.Pointer

//go:linkname newNetServer istio.io/istio/cni/pkg/nodeagent.newNetServer
func newNetServer(server nodeagent.ZtunnelServer, pods unsafe.Pointer, rules trafficmanager.TrafficRuleManager, finder nodeagent.PodNetnsFinder) *nodeagent.NetServer

//go:linkname readCurrentPodSnapshot istio.io/istio/cni/pkg/nodeagent.(*podNetnsCache).ReadCurrentPodSnapshot
func readCurrentPodSnapshot(cache unsafe.Pointer) map[string]nodeagent.WorkloadInfo

//go:linkname serverRun istio.io/istio/cni/pkg/nodeagent.(*ztunnelServer).Run
func serverRun(server unsafe.Pointer, ctx context.Context)

//go:linkname serverPodAdded istio.io/istio/cni/pkg/nodeagent.(*ztunnelServer).PodAdded
func serverPodAdded(server unsafe.Pointer, ctx context.Context, pod *corev1.Pod, ns nodeagent.Netns) error

//go:linkname serverPodDeleted istio.io/istio/cni/pkg/nodeagent.(*ztunnelServer).PodDeleted
func serverPodDeleted(server unsafe.Pointer, ctx context.Context, uid string) error

//go:linkname serverClose istio.io/istio/cni/pkg/nodeagent.(*ztunnelServer).Close
func serverClose(server unsafe.Pointer) error

// A cache is *nodeagent.podNetnsCache.
type cache struct{ p unsafe.Pointer }

var _ nodeagent.PodNetnsCache = cache{}

func (c cache) ReadCurrentPodSnapshot() map[string]nodeagent.WorkloadInfo {
	return readCurrentPodSnapshot(c.p)
}

// A server is *nodeagent.ztunnelServer.
type server struct{ p unsafe.Pointer }

var _ nodeagent.ZtunnelServer = server{}

func (s server) Run(ctx context.Context) { serverRun(s.p, ctx) }
func (s server) Close() error            { return serverClose(s.p) }

func (s server) PodAdded(ctx context.Context, pod *corev1.Pod, ns nodeagent.Netns) error {
	return serverPodAdded(s.p, ctx, pod, ns)
}

func (s server) PodDeleted(ctx context.Context, uid string) error {
	return serverPodDeleted(s.p, ctx, uid)
}
