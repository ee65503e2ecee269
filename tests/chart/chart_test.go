// Package chart renders the Helm chart with Go's templates and the functions that Helm adds to them, and looks at
// what a cluster would get. Helm itself is not needed.
package chart

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/template"

	"github.com/Masterminds/sprig/v3"
	"sigs.k8s.io/yaml"
)

const chart = "../../snapshotter-shim/deploy/helm/spanfs"

type object = map[string]any

// functions are sprig's and those of Helm's own that the chart uses.
func functions(templates *template.Template) template.FuncMap {
	functions := sprig.TxtFuncMap()
	maps.Copy(functions, template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var text bytes.Buffer
			err := templates.ExecuteTemplate(&text, name, data)
			return text.String(), err
		},
		"toYaml": func(value any) (string, error) {
			text, err := yaml.Marshal(value)
			return strings.TrimSuffix(string(text), "\n"), err
		},
		"required": func(message string, value any) (any, error) {
			if value == nil || value == "" {
				return nil, errors.New(message)
			}
			return value, nil
		},
		"fail": func(message string) (string, error) { return "", errors.New(message) },
	})
	return functions
}

func read(t *testing.T, name string) object {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(chart, name))
	if err != nil {
		t.Fatal(err)
	}
	var value object
	if err := yaml.UnmarshalStrict(text, &value); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return value
}

// render gives every file of the chart's templates, by name.
func render(t *testing.T, set object) (map[string]string, error) {
	t.Helper()
	values := read(t, "values.yaml")
	maps.Copy(values, set)
	meta := read(t, "Chart.yaml")
	data := object{
		"Values":  values,
		"Release": object{"Name": "lazy", "Namespace": "kube-system", "Service": "Helm"},
		"Chart":   object{"Name": meta["name"], "Version": meta["version"], "AppVersion": meta["appVersion"]},
	}
	templates := template.New("chart").Option("missingkey=error")
	templates.Funcs(functions(templates))
	paths, err := filepath.Glob(filepath.Join(chart, "templates/*"))
	if err != nil || len(paths) < 4 {
		t.Fatalf("templates: %v %v", paths, err)
	}
	if _, err := templates.ParseFiles(paths...); err != nil {
		t.Fatal(err)
	}
	rendered := map[string]string{}
	for _, path := range paths {
		name := filepath.Base(path)
		if strings.HasPrefix(name, "_") {
			continue
		}
		var text bytes.Buffer
		if err := templates.ExecuteTemplate(&text, name, data); err != nil {
			return nil, err
		}
		rendered[name] = text.String()
	}
	return rendered, nil
}

func mustRender(t *testing.T, set object) map[string]string {
	t.Helper()
	set["image"] = object{"repository": "registry.example/spanfs", "tag": "1", "pullPolicy": "Always"}
	rendered, err := render(t, set)
	if err != nil {
		t.Fatal(err)
	}
	return rendered
}

func at(t *testing.T, value any, path ...any) any {
	t.Helper()
	for _, key := range path {
		switch key := key.(type) {
		case string:
			value = value.(object)[key]
		case int:
			value = value.([]any)[key]
		}
		if value == nil {
			t.Fatalf("nothing at %v of %v", key, path)
		}
	}
	return value
}

func daemonSet(t *testing.T, rendered map[string]string) object {
	t.Helper()
	var set object
	if err := yaml.UnmarshalStrict([]byte(rendered["daemonset.yaml"]), &set); err != nil {
		t.Fatalf("%v\n%s", err, rendered["daemonset.yaml"])
	}
	if set["kind"] != "DaemonSet" || set["apiVersion"] != "apps/v1" {
		t.Fatalf("%v", set)
	}
	labels := at(t, set, "spec", "template", "metadata", "labels").(object)
	for key, value := range at(t, set, "spec", "selector", "matchLabels").(object) {
		if labels[key] != value {
			t.Errorf("the selector wants %s=%v, pods have %v", key, value, labels[key])
		}
	}
	return set
}

// script is what runs on each node.
func script(t *testing.T, set object) string {
	t.Helper()
	container := at(t, set, "spec", "template", "spec", "initContainers", 0)
	if at(t, container, "securityContext", "privileged") != true {
		t.Error("nsenter needs privileges")
	}
	return at(t, container, "args", 0).(string)
}

func TestInstallation(t *testing.T) {
	rendered := mustRender(t, object{"mode": "parallel"})
	set := daemonSet(t, rendered)
	if at(t, set, "spec", "template", "spec", "hostPID") != true {
		t.Error("nsenter needs the host's processes")
	}
	text := script(t, set)
	want := "install.sh install --from /opt/spanfs --mode parallel\n"
	if !strings.HasSuffix(strings.TrimSpace(text)+"\n", want) {
		t.Errorf("%s\nshould end with %s", text, want)
	}
	if strings.TrimSpace(rendered["configmap.yaml"]) != "" {
		t.Error("there are no settings to keep")
	}
	if !strings.Contains(rendered["NOTES.txt"], "action=uninstall") {
		t.Errorf("nobody is told how to undo it: %s", rendered["NOTES.txt"])
	}
}

func TestSettingsReachTheNode(t *testing.T) {
	settings := "[cri_keychain]\n  enable_keychain = true\n"
	rendered := mustRender(t, object{"settings": settings, "configureContainerd": false})
	var kept object
	if err := yaml.UnmarshalStrict([]byte(rendered["configmap.yaml"]), &kept); err != nil {
		t.Fatal(err)
	}
	if got := at(t, kept, "data", "config.toml").(string); strings.TrimSpace(got) != strings.TrimSpace(settings) {
		t.Errorf("%q, expected %q", got, settings)
	}
	set := daemonSet(t, rendered)
	text := script(t, set)
	for _, part := range []string{"--settings /opt/spanfs/config.toml", "--no-containerd", "cp /settings/config.toml"} {
		if !strings.Contains(text, part) {
			t.Errorf("%s has no %s", text, part)
		}
	}
	volume := at(t, set, "spec", "template", "spec", "volumes", 1, "configMap", "name")
	if volume != at(t, kept, "metadata", "name") {
		t.Errorf("%v is mounted", volume)
	}
}

func TestRollback(t *testing.T) {
	text := script(t, daemonSet(t, mustRender(t, object{"action": "uninstall"})))
	if !strings.HasSuffix(strings.TrimSpace(text), "install.sh uninstall --from /opt/spanfs") {
		t.Errorf("%s", text)
	}
}

func TestWrongValuesAreRefused(t *testing.T) {
	image := object{"repository": "r", "tag": "1", "pullPolicy": "Always"}
	for _, set := range []object{{}, {"image": image, "mode": "slow"}, {"image": image, "action": "remove"}} {
		if rendered, err := render(t, set); err == nil {
			t.Errorf("%v is rendered: %v", set, rendered)
		}
	}
}
