// Command validate says whether kind accepts a cluster configuration. It needs no container engine and starts nothing.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	"sigs.k8s.io/kind/pkg/cluster"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: validate FILE")
		os.Exit(2)
	}
	if err := validate(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func validate(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := load(raw); err != nil {
		return err
	}
	config := &v1alpha4.Cluster{}
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	if err := decoder.Decode(config); err != nil {
		return err
	}
	v1alpha4.SetDefaultsCluster(config)
	return check(config)
}

// load decodes with kind's own loader. The loader is internal; options of Create reach it, are applied in order, and the
// first error ends Create before it looks for a container engine. The second option always fails: whoever fails first tells.
func load(raw []byte) error {
	const stop = "kind.x-k8s.io/loaded"
	err := cluster.NewProvider(cluster.ProviderWithDocker()).Create(
		"",
		cluster.CreateWithRawConfig(raw),
		cluster.CreateWithRawConfig([]byte("apiVersion: "+stop)),
	)
	if err == nil {
		return errors.New("kind created a cluster where it had to refuse")
	}
	if strings.HasSuffix(err.Error(), "unknown apiVersion: "+stop) {
		return nil
	}
	return err
}

// check covers what kind checks only once it has found a container engine, as far as the file can get it wrong.
func check(config *v1alpha4.Cluster) error {
	var found []error
	controlPlanes := 0
	for index, node := range config.Nodes {
		switch node.Role {
		case v1alpha4.ControlPlaneRole:
			controlPlanes++
		case v1alpha4.WorkerRole:
		default:
			found = append(found, fmt.Errorf("nodes[%d].role: %q; use control-plane or worker", index, node.Role))
		}
		for at, port := range node.ExtraPortMappings {
			if port.HostPort < -1 || port.HostPort > 65535 || port.ContainerPort < 1 || port.ContainerPort > 65535 {
				found = append(found, fmt.Errorf("nodes[%d].extraPortMappings[%d]: a port is out of range", index, at))
			}
		}
	}
	if controlPlanes == 0 {
		found = append(found, errors.New("nodes: no node has the role control-plane"))
	}
	for field, subnets := range map[string]string{
		"podSubnet": config.Networking.PodSubnet, "serviceSubnet": config.Networking.ServiceSubnet,
	} {
		for _, subnet := range strings.Split(subnets, ",") {
			if _, _, err := net.ParseCIDR(subnet); err != nil {
				found = append(found, fmt.Errorf("networking.%s: %w", field, err))
			}
		}
	}
	return errors.Join(found...)
}
