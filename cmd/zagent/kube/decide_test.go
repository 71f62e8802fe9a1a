// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWhoIsCaptured(t *testing.T) {
	rules := Rules{Exclude: []string{"kube-system"}, SystemNamespace: "istio-system"}
	for _, tc := range []struct {
		name           string
		pod, namespace string // labels; "-" is none
		change         func(*corev1.Pod)
		want           bool
	}{
		{"nobody asks", "-", "-", nil, false},
		{"the pod asks", "ambient", "-", nil, true},
		{"the namespace asks", "-", "ambient", nil, true},
		{"both ask", "ambient", "ambient", nil, true},
		{"the pod asks, its namespace does not want", "ambient", "none", nil, true},
		{"the namespace asks, the pod does not want", "none", "ambient", nil, false},
		{"a word that nobody knows on the pod", "sidecar", "ambient", nil, true},
		{"a word that nobody knows on the namespace", "-", "sidecar", nil, false},
		{"an empty label on the pod", "", "ambient", nil, true},
		{"the host's network", "ambient", "ambient", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, false},
		{"a sidecar", "ambient", "-", func(p *corev1.Pod) { p.Annotations = map[string]string{sidecarAnnotation: "{}"} }, false},
		{"an excluded namespace", "ambient", "ambient", func(p *corev1.Pod) { p.Namespace = "kube-system" }, false},
		{"a proxy", "-", "ambient", func(p *corev1.Pod) { p.Namespace, p.Labels["app"] = "istio-system", "ztunnel" }, false},
		{"an app of that name", "-", "ambient", func(p *corev1.Pod) { p.Labels["app"] = "ztunnel" }, true},
		{"it has succeeded", "ambient", "-", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, false},
		{"it has failed", "ambient", "-", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, false},
		{"it has not started", "ambient", "-", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "shop", Labels: map[string]string{}}}
			namespace := map[string]string{}
			if tc.pod != "-" {
				pod.Labels[modeLabel] = tc.pod
			}
			if tc.namespace != "-" {
				namespace[modeLabel] = tc.namespace
			}
			if tc.change != nil {
				tc.change(pod)
			}
			if got := rules.Decide(pod, namespace); got.Capture != tc.want || got.Reason == "" {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestWhatTheAPISaysOfAPod(t *testing.T) {
	pod := &corev1.Pod{Status: corev1.PodStatus{PodIP: "10.0.0.9", PodIPs: []corev1.PodIP{{IP: "10.0.0.7"}, {IP: "nonsense"}, {IP: "fd00::7"}}}}
	if got := fmt.Sprint(addresses(pod)); got != "[10.0.0.7 fd00::7]" {
		t.Errorf("addresses %s", got)
	}
	pod.Status.PodIPs = nil
	if got := fmt.Sprint(addresses(pod)); got != "[10.0.0.9]" {
		t.Errorf("addresses %s", got)
	}
	pod.UID = "api"
	if cgroupUID(pod) != "api" || !isOf(pod, "api") || !isOf(pod, "") || isOf(pod, "other") {
		t.Error("a pod is not known by its uid")
	}
	pod.Annotations = map[string]string{mirrorAnnotation: "hash"}
	if cgroupUID(pod) != "hash" || !isOf(pod, "hash") || !isOf(pod, "api") {
		t.Error("a pod from a file is not known by its hash")
	}
}
