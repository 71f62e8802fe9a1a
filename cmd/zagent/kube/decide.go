// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Names that Istio gives a meaning to.
const (
	// modeLabel on a pod or its namespace says whether it is in the mesh.
	modeLabel   = "istio.io/dataplane-mode"
	modeAmbient = "ambient"
	modeNone    = "none"
	// sidecarAnnotation is on pods that were given a proxy of their own.
	sidecarAnnotation = "sidecar.istio.io/status"
	// redirectionAnnotation is what istiod waits for before it has peers use
	// HBONE to the pod.
	redirectionAnnotation = "ambient.istio.io/redirection"
	redirectionEnabled    = "enabled"
	// mirrorAnnotation is on pods that kubelet runs from files: the uid that
	// their cgroups and CNI have, which is not the one in the API.
	mirrorAnnotation = "kubernetes.io/config.mirror"
)

// Rules say which pods are captured, as those of istio-cni do.
type Rules struct {
	// Exclude are namespaces whose pods never are.
	Exclude []string
	// SystemNamespace is where the proxies run: pods labelled app=ztunnel
	// there are not captured by themselves.
	SystemNamespace string
}

// A Verdict is whether a pod is to be captured, and why.
type Verdict struct {
	Capture bool
	Reason  string
}

// Decide is what becomes of a pod in a namespace with these labels.
func (r Rules) Decide(pod *corev1.Pod, namespaceLabels map[string]string) Verdict {
	no := func(format string, args ...any) Verdict { return Verdict{false, fmt.Sprintf(format, args...)} }
	onPod, onNamespace := pod.Labels[modeLabel], namespaceLabels[modeLabel]
	_, sidecar := pod.Annotations[sidecarAnnotation]
	switch {
	case onPod != modeAmbient && (onPod == modeNone || onNamespace != modeAmbient):
		return no("neither it nor its namespace asks for it with the label %s=%s, or its own says %s", modeLabel, modeAmbient, modeNone)
	case pod.Spec.HostNetwork:
		return no("it is in the host's network")
	case sidecar:
		return no("it has a sidecar")
	case slices.Contains(r.Exclude, pod.Namespace):
		return no("its namespace is excluded")
	case pod.Namespace == r.SystemNamespace && pod.Labels["app"] == "ztunnel":
		return no("it is a proxy itself")
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return no("it has ended")
	case onPod == modeAmbient:
		return Verdict{true, "it is labelled for the mesh"}
	}
	return Verdict{true, "its namespace is labelled for the mesh"}
}

// addresses are those that the API knows of a pod; an address that is none is
// left out.
func addresses(pod *corev1.Pod) []netip.Addr {
	var all []netip.Addr
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			all = append(all, a.Unmap())
		}
	}
	if a, err := netip.ParseAddr(pod.Status.PodIP); err == nil && len(all) == 0 {
		all = append(all, a.Unmap())
	}
	return all
}

// cgroupUID is the uid that the node's own names have for a pod.
func cgroupUID(pod *corev1.Pod) string {
	if hash := pod.Annotations[mirrorAnnotation]; hash != "" {
		return hash
	}
	return string(pod.UID)
}

// isMarked says whether the API calls a pod captured.
func isMarked(pod *corev1.Pod) bool {
	return pod.Annotations[redirectionAnnotation] == redirectionEnabled
}
