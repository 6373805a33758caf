"""Moto, the AWS of the tests, and the commands that change its resources, in one process.

The script needs the Python of moto's environment, which includes boto3. The process first prints its endpoint as a JSON
string. Each line of its input is a command and the command's arguments, as a JSON array. The process answers each command
with one line of JSON: `{"answer": …}` or `{"error": "…"}`. The process ends with its input.
"""

import base64
import functools
import gc
import json
import sys
import traceback

# Loopback addresses, so that real servers can listen on the addresses of moto's instances. The subnet excludes
# 127.0.0.1.
VPC = "127.0.0.0/16"
SUBNET = "127.0.16.0/20"
REGION = "eu-west-1"


def launch(group, size):
    """Makes an Auto Scaling group of `size` instances in a separate network."""
    ec2, autoscaling = client("ec2"), client("autoscaling")
    vpc = ec2.create_vpc(CidrBlock=VPC)["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=SUBNET)["Subnet"]["SubnetId"]
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    ec2.create_launch_template(
        LaunchTemplateName=group, LaunchTemplateData={"ImageId": image, "InstanceType": "t3.micro"}
    )
    autoscaling.create_auto_scaling_group(
        AutoScalingGroupName=group,
        LaunchTemplate={"LaunchTemplateName": group, "Version": "$Latest"},
        MinSize=0,
        MaxSize=100,
        DesiredCapacity=size,
        VPCZoneIdentifier=subnet,
    )
    return instances(group)


def resize(group, size):
    client("autoscaling").set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=size)
    return instances(group)


def terminate(instance):
    """Terminates one instance. The group doesn't replace it."""
    client("autoscaling").terminate_instance_in_auto_scaling_group(
        InstanceId=instance, ShouldDecrementDesiredCapacity=True
    )


def standby(group, instance):
    client("autoscaling").enter_standby(
        InstanceIds=[instance], AutoScalingGroupName=group, ShouldDecrementDesiredCapacity=True
    )


def detach(group, *members):
    client("autoscaling").detach_instances(
        InstanceIds=members, AutoScalingGroupName=group, ShouldDecrementDesiredCapacity=True
    )


def attach(group, *members):
    client("autoscaling").attach_instances(InstanceIds=members, AutoScalingGroupName=group)


def instances(group):
    """The group's members: [{"id": …, "address": …, "state": …}]."""
    groups = client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[group])
    states = {i["InstanceId"]: i["LifecycleState"] for i in groups["AutoScalingGroups"][0]["Instances"]}
    if not states:
        return []
    reservations = client("ec2").describe_instances(InstanceIds=list(states))["Reservations"]
    return [
        {"id": i["InstanceId"], "address": i["PrivateIpAddress"], "state": states[i["InstanceId"]]}
        for reservation in reservations
        for i in reservation["Instances"]
    ]


def create_ca(name, usage_mode):
    """Makes an active root CA: {"arn": …, "pem": …}."""
    pca = client("acm-pca")
    arn = pca.create_certificate_authority(
        CertificateAuthorityType="ROOT",
        UsageMode=usage_mode,
        CertificateAuthorityConfiguration={
            "KeyAlgorithm": "RSA_2048",
            "SigningAlgorithm": "SHA256WITHRSA",
            "Subject": {"CommonName": name},
        },
    )["CertificateAuthorityArn"]
    certificate = pca.issue_certificate(
        CertificateAuthorityArn=arn,
        Csr=pca.get_certificate_authority_csr(CertificateAuthorityArn=arn)["Csr"].encode(),
        SigningAlgorithm="SHA256WITHRSA",
        TemplateArn="arn:aws:acm-pca:::template/RootCACertificate/V1",
        Validity={"Type": "YEARS", "Value": 10},
    )["CertificateArn"]
    pem = pca.get_certificate(CertificateAuthorityArn=arn, CertificateArn=certificate)["Certificate"]
    pca.import_certificate_authority_certificate(CertificateAuthorityArn=arn, Certificate=pem.encode())
    return {"arn": arn, "pem": pem}


def certificate(ca, arn):
    """An issued certificate: {"pem": …}."""
    answer = client("acm-pca").get_certificate(CertificateAuthorityArn=ca, CertificateArn=arn)
    return {"pem": answer["Certificate"]}


def put_secret(name, content, is_binary):
    """Makes the content, in base64, the current version of a secret: {"arn": …, "version": …}."""
    secrets = client("secretsmanager")
    content = base64.b64decode(content)
    value = {"SecretBinary": content} if is_binary else {"SecretString": content.decode()}
    try:
        answer = secrets.put_secret_value(SecretId=name, **value)
    except secrets.exceptions.ResourceNotFoundException:
        answer = secrets.create_secret(Name=name, **value)
    return {"arn": answer["ARN"], "version": answer["VersionId"]}


def make_current(name, version):
    """Moves AWSCURRENT back to an older version."""
    secrets = client("secretsmanager")
    versions = secrets.list_secret_version_ids(SecretId=name)["Versions"]
    current = next(v["VersionId"] for v in versions if "AWSCURRENT" in v["VersionStages"])
    secrets.update_secret_version_stage(
        SecretId=name, VersionStage="AWSCURRENT", MoveToVersionId=version, RemoveFromVersionId=current
    )


def delete_secret(name):
    """Deletes a secret at once."""
    client("secretsmanager").delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)


COMMANDS = {
    command.__name__: command
    for command in (
        launch,
        resize,
        instances,
        terminate,
        standby,
        detach,
        attach,
        create_ca,
        certificate,
        put_secret,
        make_current,
        delete_secret,
    )
}


@functools.cache
def client(service):
    import boto3

    return boto3.client(
        service,
        endpoint_url=ENDPOINT,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def answer(line):
    name, *arguments = json.loads(line)
    try:
        return {"answer": COMMANDS[name](*arguments)}
    except Exception:
        return {"error": traceback.format_exc()}


def start():
    """Starts moto on a free port of loopback, and returns its endpoint."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    return f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    # Only answers go to the standard output, whatever a library prints.
    answers, sys.stdout = sys.stdout, sys.stderr
    # Moto's models are 300,000 objects that stay. Frequent collections look at them again and again.
    gc.set_threshold(200_000)
    ENDPOINT = start()
    print(json.dumps(ENDPOINT), file=answers, flush=True)
    for command in sys.stdin:
        print(json.dumps(answer(command)), file=answers, flush=True)
