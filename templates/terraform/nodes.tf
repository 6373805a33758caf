# The lookup includes deprecated images. An image of Amazon Linux 2023 is deprecated after 90 days and still works.
data "aws_ami" "node" {
  include_deprecated = true

  filter {
    name   = "image-id"
    values = [var.ami_id]
  }
}

locals {
  # A key of [nats], before the keys of extra_agent_toml.
  system_key = var.system_secret_arn == "" ? "" : "system = { secret_id = \"${var.system_secret_arn}\" }\n"

  # Tables of their own, after extra_agent_toml.
  clients_table    = var.client_trust_secret_arn == "" ? "" : "\n[trust.clients]\nsecret_id = \"${var.client_trust_secret_arn}\"\n"
  connection_table = local.keeps_connection ? "\n[connection]\nsecret_id = \"${local.connection_secret_arn}\"\n" : ""

  # By itself the agent serves metrics to its own machine alone. A table [metrics] in extra_agent_toml stays as it is.
  has_metrics_table = can(regex("(?m)^\\s*\\[metrics\\]", var.extra_agent_toml))
  metrics_table     = length(var.metrics_security_group_ids) > 0 && !local.has_metrics_table ? "\n[metrics]\nlisten = \"0.0.0.0:9464\"\n" : ""

  user_data = templatefile("${path.module}/../user-data/user-data.yaml", {
    nats_server_url    = var.nats_server_url
    nats_server_sha256 = var.nats_server_sha256
    agent_url          = var.agent_url
    agent_sha256       = var.agent_sha256
    ca_arn             = local.ca_arn
    validity           = var.certificate_validity
    trust_secret_id    = local.trust_secret_arn
    cluster_secret_id  = local.cluster_secret_arn
    # A JSON list of strings is also a TOML list.
    dns_names         = jsonencode(concat([var.client_dns_name], var.additional_dns_names))
    addresses         = var.addresses
    nats_include      = jsonencode(concat(["/etc/nats/conf.d/extra.conf"], formatlist("secret:%s", var.included_secret_arns)))
    extra_agent_toml  = base64encode("${local.system_key}${var.extra_agent_toml}${local.clients_table}${local.connection_table}${local.metrics_table}")
    extra_nats_config = base64encode(var.extra_nats_config)
  })

  node_tags = merge(var.tags, { Name = "${var.name}-node" })

  # During a replacement the group has one node more than `size`, and never a node less.
  max_healthy_percentage = 100 + ceil(100 / var.size)
}

resource "aws_launch_template" "node" {
  name_prefix            = "${var.name}-node-"
  description            = "A node of ${var.name}"
  image_id               = var.ami_id
  instance_type          = var.instance_type
  ebs_optimized          = true
  update_default_version = true
  vpc_security_group_ids = [aws_security_group.node.id]
  user_data              = base64encode(local.user_data)
  tags                   = var.tags

  iam_instance_profile {
    arn = aws_iam_instance_profile.node.arn
  }

  # A node accepts only IMDSv2, and the answers stay within the instance. The agent runs outside containers, so one hop is
  # enough
  # (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-options.html).
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  # i-….REGION.compute.internal resolves to the instance's address. Nodes find each other by this name without an EC2
  # permission (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-naming.html).
  private_dns_name_options {
    hostname_type                     = "resource-name"
    enable_resource_name_dns_a_record = true
  }

  block_device_mappings {
    device_name = data.aws_ami.node.root_device_name

    ebs {
      encrypted             = true
      volume_type           = "gp3"
      volume_size           = var.root_volume_gib
      delete_on_termination = true
    }
  }

  monitoring {
    enabled = true
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume", "network-interface"]

    content {
      resource_type = tag_specifications.value
      tags          = local.node_tags
    }
  }

  lifecycle {
    create_before_destroy = true

    # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-add-user-data.html
    precondition {
      condition     = length(local.user_data) < 16384
      error_message = "User data is limited to 16 KiB."
    }
  }
}

# The group has no lifecycle hooks yet. Nothing would complete a hook, so each launch would wait for the time-out.
resource "aws_autoscaling_group" "node" {
  name                      = var.name
  desired_capacity          = var.size
  min_size                  = var.size
  max_size                  = var.size + 1
  vpc_zone_identifier       = var.subnet_ids
  target_group_arns         = [local.load_balancer.target_group_arn]
  health_check_type         = var.health_check_type
  health_check_grace_period = var.boot_seconds
  protect_from_scale_in     = var.scale_in_protection
  default_instance_warmup   = 60

  # `apply` waits until all nodes serve.
  wait_for_elb_capacity     = var.size
  wait_for_capacity_timeout = "20m"

  # A node holds its streams, so the group removes no node merely to balance the zones
  # (https://docs.aws.amazon.com/autoscaling/ec2/userguide/as-suspend-resume-processes.html).
  suspended_processes = ["AZRebalance"]

  launch_template {
    id      = aws_launch_template.node.id
    version = aws_launch_template.node.latest_version
  }

  # The new node starts before the old node ends, also after a failed health check
  # (https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-instance-maintenance-policy.html).
  instance_maintenance_policy {
    min_healthy_percentage = 100
    max_healthy_percentage = local.max_healthy_percentage
  }

  # A change of the launch template replaces the nodes one after the other, with a pause after each. If a new node
  # doesn't become healthy, the refresh stops and the old template returns.
  instance_refresh {
    strategy = "Rolling"

    preferences {
      min_healthy_percentage = 100
      max_healthy_percentage = local.max_healthy_percentage
      skip_matching          = true
      auto_rollback          = true
      # Without this value a refresh leaves protected nodes as they are
      # (https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_RefreshPreferences.html).
      scale_in_protected_instances = "Refresh"
      checkpoint_delay             = var.refresh_pause_seconds
      # A checkpoint is "the minimum percentage of instances that must be new". Rounding down gives each node a checkpoint:
      # 33, 66, 100
      # (https://docs.aws.amazon.com/autoscaling/ec2/userguide/asg-adding-checkpoints-instance-refresh.html).
      checkpoint_percentages = [for number in range(1, var.size + 1) : floor(number * 100 / var.size)]
    }
  }

  dynamic "tag" {
    for_each = local.node_tags

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = false
    }
  }

  # A node needs these resources while it starts and while it serves. During a destroy they must outlast the node.
  depends_on = [
    aws_acmpca_certificate_authority_certificate.this,
    aws_secretsmanager_secret_version.trust,
    aws_iam_role_policy.agent,
    aws_iam_role_policy.own_key,
    aws_iam_role_policy.existing_keys,
    aws_iam_role_policy.included_secrets,
    aws_iam_role_policy.system_secret,
    aws_iam_role_policy.client_trust,
    aws_iam_role_policy.connection,
    aws_iam_role_policy.connection_key,
    aws_iam_role_policy.included_secret_keys,
    aws_iam_role_policy.ec2_addresses,
    aws_iam_role_policy_attachment.additional,
    aws_vpc_security_group_egress_rule.https,
    aws_vpc_security_group_egress_rule.https_to_prefix_lists,
    aws_vpc_security_group_ingress_rule.metrics,
    aws_vpc_security_group_ingress_rule.routes,
    aws_vpc_security_group_egress_rule.routes,
    aws_vpc_security_group_ingress_rule.from_load_balancer,
    aws_vpc_security_group_egress_rule.to_nodes,
    aws_lb_listener.clients,
  ]
}
