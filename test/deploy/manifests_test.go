// SPDX-License-Identifier: Apache-2.0

// Package deploy tests what deploy/ holds: that Kubernetes would take each
// manifest as it was meant, and that the image, run under runc as the DaemonSet
// says, carries traffic.
//
// It is a module of its own, so that ours depends on neither Kubernetes nor
// kustomize.
package deploy

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const deployDir = "../../deploy"

// kinds are all that Kubernetes knows, and what we write for Prometheus' operator.
func kinds(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	must(t, scheme.AddToScheme(s))
	must(t, monitoring.AddToScheme(s))
	return s
}

// decode reads documents as the API server does when told to refuse fields
// that it does not know, or that are there twice.
func decode(t *testing.T, text []byte) ([]runtime.Object, error) {
	t.Helper()
	s := kinds(t)
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, s, s, json.SerializerOptions{Yaml: true, Strict: true})
	var objects []runtime.Object
	documents := yaml.NewYAMLReader(newLines(text))
	for {
		document, err := documents.Read()
		if err == io.EOF {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		if len(bytes.TrimSpace(withoutComments(document))) == 0 {
			continue
		}
		object, _, err := strict.Decode(document, nil, nil)
		if err != nil {
			return nil, err
		}
		objects = append(objects, object)
	}
}

// rendered is what `kubectl apply -k` would send of a directory of deploy/.
func rendered(t *testing.T, dir string) []runtime.Object {
	t.Helper()
	all, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(deployDir, dir))
	must(t, err)
	text, err := all.AsYaml()
	must(t, err)
	objects, err := decode(t, text)
	must(t, err)
	return objects
}

// kustomized are the directories of deploy/ that kustomize renders.
func kustomized(t *testing.T) []string {
	t.Helper()
	var dirs []string
	must(t, filepath.WalkDir(deployDir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "kustomization.yaml" {
			rel, err := filepath.Rel(deployDir, filepath.Dir(name))
			dirs = append(dirs, rel)
			return err
		}
		return err
	}))
	return dirs
}

func TestKubernetesKnowsEveryFieldOfWhatIsRendered(t *testing.T) {
	dirs := kustomized(t)
	for _, want := range []string{"ztunnel", "least", "agent"} {
		if !slices.Contains(dirs, want) {
			t.Errorf("deploy/%s is not there: %v", want, dirs)
		}
	}
	for _, dir := range dirs {
		t.Run(dir, func(t *testing.T) {
			for _, object := range rendered(t, dir) {
				if set, ok := object.(*appsv1.DaemonSet); ok {
					coherent(t, set)
				}
			}
		})
	}
}

// coherent checks what holds a DaemonSet together and no type can say.
func coherent(t *testing.T, set *appsv1.DaemonSet) {
	t.Helper()
	for name, value := range set.Spec.Selector.MatchLabels {
		if set.Spec.Template.Labels[name] != value {
			t.Errorf("%s: its pods do not have the label %s=%s of its selector", set.Name, name, value)
		}
	}
	spec := set.Spec.Template.Spec
	used := map[string]bool{}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		for _, m := range c.VolumeMounts {
			used[m.Name] = true
			if !slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
				t.Errorf("%s: %s mounts the volume %s, which is not there", set.Name, c.Name, m.Name)
			}
		}
	}
	for _, v := range spec.Volumes {
		if !used[v.Name] {
			t.Errorf("%s: nobody mounts the volume %s", set.Name, v.Name)
		}
	}
}

// TestKubernetesKnowsEveryFieldOfOtherManifests is about files that stand alone.
func TestKubernetesKnowsEveryFieldOfOtherManifests(t *testing.T) {
	for _, name := range []string{"networkpolicy.yaml", "monitoring/podmonitor.yaml"} {
		text, err := os.ReadFile(filepath.Join(deployDir, name))
		must(t, err)
		if objects, err := decode(t, text); err != nil || len(objects) == 0 {
			t.Errorf("%s: %d objects, %v", name, len(objects), err)
		}
	}
}

func TestAFieldThatNobodyKnowsIsFound(t *testing.T) {
	const good = "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: a\n"
	if objects, err := decode(t, []byte("# nothing\n---\n"+good)); err != nil || len(objects) != 1 {
		t.Fatalf("%v, %v", objects, err)
	}
	for _, bad := range []string{good + "automountToken: true\n", good + "kind: ServiceAccount\n", strings.Replace(good, "v1", "v7", 1)} {
		if _, err := decode(t, []byte(bad)); err == nil {
			t.Errorf("taken:\n%s", bad)
		}
	}
}

func TestTheLeastIsThePrivilegedOneButForItsRights(t *testing.T) {
	privileged, least := proxy(t, "ztunnel"), proxy(t, "least")
	if c := privileged.Spec.Template.Spec.Containers[0].SecurityContext; c.Privileged == nil || !*c.Privileged {
		t.Error("deploy/ztunnel is not privileged")
	}
	c := least.Spec.Template.Spec.Containers[0].SecurityContext
	if c.Privileged == nil || *c.Privileged {
		t.Error("deploy/least is privileged")
	}
	if !slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("deploy/least drops %v", c.Capabilities.Drop)
	}
	for _, set := range []*appsv1.DaemonSet{privileged, least} {
		set.Spec.Template.Spec.Containers[0].SecurityContext = nil
	}
	if !equal(t, privileged, least) {
		t.Error("they differ beyond the security context")
	}
}

// proxy is the DaemonSet of the proxy in a directory of deploy/.
func proxy(t *testing.T, dir string) *appsv1.DaemonSet {
	t.Helper()
	for _, object := range rendered(t, dir) {
		if set, ok := object.(*appsv1.DaemonSet); ok && set.Name == "ztunnel" {
			return set
		}
	}
	t.Fatalf("no DaemonSet ztunnel in deploy/%s", dir)
	return nil
}
