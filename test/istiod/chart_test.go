// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"os"
	"slices"
	"testing"

	"istio.io/istio/operator/pkg/helm"
	"istio.io/istio/operator/pkg/values"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// TestIstiosChartTakesOurValues renders Istio's chart of ztunnel with
// deploy/istio/values.yaml: our image, and beside what the chart has anyway what
// capture by eBPF needs. The capabilities are those that test/deploy runs the
// image with.
func TestIstiosChartTakesOurValues(t *testing.T) {
	text, err := os.ReadFile("../../deploy/istio/values.yaml")
	must(t, err)
	var ours map[string]any
	must(t, yaml.UnmarshalStrict(text, &ours))
	rendered, warnings, err := helm.Render("ztunnel", "istio-system", "ztunnel", values.Map{"spec": map[string]any{"values": ours}}, nil)
	must(t, err)
	if len(warnings) > 0 {
		t.Error(warnings)
	}
	var set *appsv1.DaemonSet
	for _, m := range rendered {
		if m.GetKind() == "DaemonSet" {
			set = new(appsv1.DaemonSet)
			must(t, runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(m.Object, set, true))
		}
	}
	if set == nil {
		t.Fatal("the chart has no DaemonSet")
	}
	pod := set.Spec.Template.Spec
	c := pod.Containers[0]
	if c.Image != ours["image"] {
		t.Errorf("the image is %s", c.Image)
	}
	for name, path := range map[string]string{"bpffs": "/sys/fs/bpf", "cgroup": "/host/sys/fs/cgroup", "cni-ztunnel-sock-dir": "/var/run/ztunnel"} {
		if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == name && m.MountPath == path }) ||
			!slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == name && v.HostPath != nil }) {
			t.Errorf("nothing of the node is mounted at %s", path)
		}
	}
	held := slices.Sorted(slices.Values(c.SecurityContext.Capabilities.Add))
	if !slices.Equal(held, []corev1.Capability{"NET_ADMIN", "NET_RAW", "SYS_ADMIN"}) || *c.SecurityContext.Privileged {
		t.Errorf("the chart grants %v", held)
	}
	if !slices.Equal(c.Args, []string{"proxy", "ztunnel"}) || c.Command != nil {
		t.Errorf("command %v, arguments %v", c.Command, c.Args)
	}
}
